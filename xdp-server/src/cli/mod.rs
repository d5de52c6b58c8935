//! The command line: from flags, environment and file to [`Settings`].
//!
//! Theory of operation ------------------- `args` declares every option once, for clap. `layers` turns the
//! TOML file and the environment into flags that are put before the real ones, so that clap alone decides
//! what is valid, and precedence (flag, environment, file, default) is nothing but order. `values` holds the
//! parsers of richer values. The result is a [`Command`] with [`Settings`], a plain struct: nothing outside
//! this module sees a type of clap, and nothing here looks at the host, but for the named file.
//!
//! Called once, by `main`, before any thread is started.

mod args;
mod bench;
mod layers;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use args::Verb;
use clap::{CommandFactory, FromArgMatches};

pub use settings::{Backend, CertificateFiles, HugePages, Metrics, PollMode, Settings, Steering, XdpMode};

/// Exit status of a wrong setting; `--help` documents it. 0 and 1 are the standard library's.
pub const EXIT_USAGE: u8 = 2;

/// Most workers: a server connection ID names its worker in one byte (`PROTOCOL.md`, section 6).
pub const MAX_WORKERS: u16 = 256;

/// Most connections of one worker, and the default. From the benchmarking guide's reference deployment: 47
/// workers then take three million, several times what their memory and cores can serve. Tables are sized by
/// the setting, so smaller saves memory; a client beyond it is told SERVER_FULL.
pub const MAX_CONNECTIONS_PER_WORKER: u32 = 65_536;

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the server.
    Serve(Settings),
    /// Check whether the host is ready for these settings.
    Doctor(Settings),
    /// Measure what things cost on this machine.
    Bench(crate::bench::Settings),
    /// Show how this interface spreads packets over its receive queues.
    Rss {
        /// Its name.
        iface: String,
        /// As JSON.
        json: bool,
    },
}

/// Why there is no [`Command`].
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// clap has the last word: a wrong flag, or `--help` and `--version`, which are no failures.
    #[error("{0}")]
    Flags(Box<clap::Error>),
    /// The file of `--config` cannot be read.
    #[error("cannot read {} (--config or XDP_SERVER_CONFIG): {source}; check the path", path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {reason}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// The TOML parser's words, with line and column.
        reason: String,
    },
    /// The file has a key that is no setting.
    #[error("{source_name}: unknown key `{key}`{guess}\n  keys are: {allowed}")]
    UnknownKey {
        /// The file.
        source_name: String,
        /// The key.
        key: String,
        /// What may have been meant, as the end of a sentence, or empty.
        guess: String,
        /// All keys.
        allowed: String,
    },
    /// One setting is given under two names in one place.
    #[error("{source_name}: `{first}` and `{second}` are one and the same setting; keep one of them")]
    SameSetting {
        /// The file, or the environment.
        source_name: String,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A value of the file or the environment is not allowed.
    #[error("{source_name}: `{key}`: {reason}")]
    Value {
        /// The file, or the environment.
        source_name: String,
        /// Key or variable.
        key: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// `--cert` without `--key`, or the reverse.
    #[error("--{given} needs --{missing}: give both PEM files, or none for a self-signed certificate")]
    HalfACertificate {
        /// Option that is there.
        given: &'static str,
        /// Option that is not.
        missing: &'static str,
    },
    /// AF_XDP by name, but nowhere to attach to.
    #[error("--backend xdp needs --iface IF, the interface to attach to; `ip -brief link` lists them")]
    XdpWithoutInterface,
    /// `bench` after an option: it has options of its own, which stand behind it.
    #[error("`bench` comes first, and its own options behind it: `xdp-server bench --help` lists them")]
    BenchNotFirst,
    /// Whose RSS?
    #[error("rss needs --iface IF, the interface to look at; `ip -brief link` lists them")]
    RssWithoutInterface,
}

impl CliError {
    /// Prints to standard error (`--help` and `--version`: to standard output) and returns the status to exit
    /// with.
    pub fn report(&self) -> ExitCode {
        match self {
            // A closed pipe (`--help | head`) is no reason to fail.
            CliError::Flags(error) => {
                let _ = error.print();
            }
            other => eprintln!("error: {other}\n\nFor more information, try '--help'."),
        }
        ExitCode::from(self.exit_status())
    }

    fn exit_status(&self) -> u8 {
        match self {
            CliError::Flags(error) if !error.use_stderr() => 0,
            _ => EXIT_USAGE,
        }
    }
}

impl From<clap::Error> for CliError {
    fn from(error: clap::Error) -> Self {
        CliError::Flags(Box::new(error))
    }
}

/// What this process is to do, and with which settings: from its arguments, its environment, and the file
/// that they name.
///
/// # Errors
/// [`CliError`], which also stands for `--help` and `--version`; give it to [`CliError::report`].
pub fn parse() -> Result<Command, CliError> {
    let args: Vec<OsString> = std::env::args_os().collect();
    parse_from(&args, &|variable| std::env::var_os(variable), &|path| std::fs::read_to_string(path))
}

/// [`parse`] with the world passed in: arguments (the program's name first), a look-up of environment
/// variables, and a reader of files.
///
/// # Errors
/// As [`parse`].
pub fn parse_from(
    args: &[OsString],
    env: &dyn Fn(&str) -> Option<OsString>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Command, CliError> {
    if let [_, name, ..] = args
        && name == bench::NAME
    {
        return bench::parse(&args[1..]);
    }
    let command = args::Args::command();
    let from_flags = args::Args::from_arg_matches(&command.clone().try_get_matches_from(args)?)?;
    let from_env = layers::from_env(&command, env)?;

    let config = from_flags
        .config
        .or_else(|| env(&layers::variable_of("config")).filter(|path| !path.is_empty()).map(PathBuf::from));
    let from_file = match config {
        Some(path) => {
            let text =
                read(&path).map_err(|source| CliError::FileUnreadable { path: path.clone(), source })?;
            layers::from_file(&command, &path, &text)?
        }
        None => Vec::new(),
    };

    let program = args.first().cloned().unwrap_or_else(|| "xdp-server".into());
    let all = std::iter::once(program).chain(from_file).chain(from_env).chain(args.iter().skip(1).cloned());
    let args = args::Args::from_arg_matches(&command.try_get_matches_from(all)?)?;
    match args.command {
        Verb::Serve => args.try_into().map(Command::Serve),
        Verb::Doctor => args.try_into().map(Command::Doctor),
        Verb::Bench => Err(CliError::BenchNotFirst),
        Verb::Rss => {
            let Settings { iface, json, .. } = args.try_into()?;
            Ok(Command::Rss { iface: iface.ok_or(CliError::RssWithoutInterface)?, json })
        }
    }
}

impl Default for Settings {
    /// What `xdp-server` without flags, environment and file does.
    fn default() -> Self {
        let nothing = |_: &Path| Err(io::ErrorKind::NotFound.into());
        match parse_from(&["xdp-server".into()], &|_| None, &nothing)
            .expect("the defaults are valid settings")
        {
            Command::Serve(settings) => settings,
            other => unreachable!("{other:?} needs a word on the command line"),
        }
    }
}
