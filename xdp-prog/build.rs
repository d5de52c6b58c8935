//! Compiles `bpf/xdp_quic.bpf.c` for the BPF target and generates its Rust skeleton into `OUT_DIR`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/xdp_quic.bpf.c";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let version = Command::new(&clang).arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return Err(format!(
            "the XDP program is compiled with clang, and `{}` does not run. On Debian and Ubuntu: \
             `sudo apt-get install clang`; or name another with CLANG=/path/to/clang",
            clang.to_string_lossy()
        ));
    }
    let mut arguments: Vec<OsString> = ["-Wall", "-Wextra", "-Werror"].map(OsString::from).into();
    if let Some(directory) = asm_headers()? {
        // As a system directory: warnings in the kernel's headers are not ours to mend.
        arguments.extend(["-isystem".into(), directory.into()]);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang(&clang)
        .clang_args(arguments)
        // Formatting the skeleton is cosmetic, but the builder fails when rustfmt does, as rustup's stand-in
        // does without the component. A program that does not exist makes it skip the step.
        .rustfmt("/nonexistent/rustfmt")
        .build_and_generate(out.join("xdp_quic.skel.rs"))
        .map_err(|error| format!("{SOURCE} does not compile: {error:#}"))
}

/// The folder of the kernel's `asm/` headers, which `linux/*.h` include: Debian and Ubuntu keep them in a
/// folder for each architecture, where clang does not look when it compiles for the BPF target.
/// `None` where they are in `/usr/include` itself.
fn asm_headers() -> Result<Option<PathBuf>, String> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| error.to_string())?;
    let multiarch = Path::new("/usr/include").join(format!("{architecture}-linux-gnu"));
    if multiarch.join("asm/types.h").exists() {
        return Ok(Some(multiarch));
    }
    if Path::new("/usr/include/asm/types.h").exists() {
        return Ok(None);
    }
    Err("the kernel's user-space headers are missing (asm/types.h). On Debian and Ubuntu: \
         `sudo apt-get install linux-libc-dev`; on Fedora: `sudo dnf install kernel-headers`"
        .into())
}
