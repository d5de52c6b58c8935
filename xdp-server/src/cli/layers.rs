//! Settings from the environment and from a file, turned into flags.
//!
//! clap validates everything: an entry of a file or a variable becomes `--name=value`, is tried on its own
//! (so that the error can name where the value came from), and is put in front of the real flags, weakest
//! first. Since a later flag overrides an earlier one, the order alone makes the precedence.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::Command;
use clap::error::ContextKind;

use super::CliError;

/// Prefix of the environment variables.
///
/// Unknown variables with it are not errors: Kubernetes puts `XDP_SERVER_PORT`, `XDP_SERVER_SERVICE_HOST` and
/// more into every container beside a service of the name `xdp-server`. None of those is a setting's name.
const ENV_PREFIX: &str = "XDP_SERVER_";

/// The one option that is no setting of a file: files do not name files.
const NOT_IN_FILE: &str = "config";

/// The variable that stands for `--name`.
pub(super) fn variable_of(name: &str) -> String {
    format!("{ENV_PREFIX}{}", name.to_uppercase().replace('-', "_"))
}

/// The flags that the environment stands for. `env` looks up one variable.
pub(super) fn from_env(
    command: &Command,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, CliError> {
    let mut flags = Vec::new();
    for names in settings(command) {
        let mut set = names.iter().filter_map(|name| {
            let variable = variable_of(name);
            env(&variable).filter(|value| !value.is_empty()).map(|value| (variable, value))
        });
        let Some((variable, value)) = set.next() else { continue };
        if let Some((second, _)) = set.next() {
            return Err(CliError::SameSetting { source_name: "environment".into(), first: variable, second });
        }
        let flag = flag(&names[0], &value);
        try_alone(command, &flag).map_err(|reason| CliError::Value {
            source_name: "environment".into(),
            key: variable,
            reason,
        })?;
        flags.push(flag);
    }
    Ok(flags)
}

/// The flags that the file `path` with the content `text` stands for.
pub(super) fn from_file(command: &Command, path: &Path, text: &str) -> Result<Vec<OsString>, CliError> {
    let source_name = path.display().to_string();
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| CliError::FileSyntax {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;

    let mut settings = settings(command);
    settings.retain(|names| names[0] != NOT_IN_FILE);
    let mut seen: Vec<(&str, &str)> = Vec::with_capacity(table.len()); // setting, key as written
    let mut flags = Vec::with_capacity(table.len());
    for (key, value) in &table {
        let names = settings
            .iter()
            .find(|names| names.contains(key))
            .ok_or_else(|| unknown_key(command, &settings, &source_name, key))?;
        if let Some((_, first)) = seen.iter().find(|(setting, _)| *setting == names[0]) {
            return Err(CliError::SameSetting {
                source_name,
                first: (*first).to_owned(),
                second: key.clone(),
            });
        }
        seen.push((&names[0], key));

        let checked = plain(value).and_then(|value| {
            let flag = flag(&names[0], OsStr::new(&value));
            try_alone(command, &flag).map(|()| flag)
        });
        match checked {
            Ok(flag) => flags.push(flag),
            Err(reason) => return Err(CliError::Value { source_name, key: key.clone(), reason }),
        }
    }
    Ok(flags)
}

/// Every setting's names, the canonical one first. `--help` and `--version` are not among them: clap adds
/// those to a command only when it parses.
fn settings(command: &Command) -> Vec<Vec<String>> {
    let names = |arg: &clap::Arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        Some(std::iter::once(arg.get_long()?).chain(aliases).map(str::to_owned).collect())
    };
    command.get_arguments().filter_map(names).collect()
}

/// `--name=value`. The equals sign keeps a value that begins with a dash from being taken for a flag.
fn flag(name: &str, value: &OsStr) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

/// Has clap check one flag; the error is clap's text without its decoration.
fn try_alone(command: &Command, flag: &OsStr) -> Result<(), String> {
    let result = command.clone().try_get_matches_from([OsStr::new("xdp-server"), flag]);
    result.map(drop).map_err(|error| {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
    })
}

/// A TOML value as it would stand on the command line.
fn plain(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        other => Err(format!(
            "is a TOML {}; write a string, an integer, true or false \
             (lists as one string, such as \"0,2-5\")",
            other.type_str()
        )),
    }
}

/// The error for a key that no setting has, with clap's guess at what was meant.
fn unknown_key(command: &Command, settings: &[Vec<String>], source_name: &str, key: &str) -> CliError {
    let guess = command.clone().try_get_matches_from(["xdp-server".to_owned(), format!("--{key}=1")]).err();
    let guess = guess
        .as_ref()
        .and_then(|error| error.get(ContextKind::SuggestedArg))
        .map(|guess| guess.to_string().trim_start_matches('-').to_owned())
        .filter(|guess| settings.iter().any(|names| names.contains(guess)));
    let mut allowed: Vec<&str> = settings.iter().map(|names| names[0].as_str()).collect();
    allowed.sort_unstable();
    CliError::UnknownKey {
        source_name: source_name.to_owned(),
        key: key.to_owned(),
        guess: guess.map(|guess| format!("; did you mean `{guess}`?")).unwrap_or_default(),
        allowed: allowed.join(", "),
    }
}
