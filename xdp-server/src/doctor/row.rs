//! A row of the diagnosis: one check, what was found, and what would mend it.

use serde::Serialize;

/// How a check came out, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does not apply here; the text says why.
    #[serde(rename = "-")]
    Skip,
    /// As it should be.
    Ok,
    /// The server runs, with less than it could have.
    Warn,
    /// The server cannot run with these settings.
    Fail,
}

impl Status {
    /// The word in the table and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Skip => "-",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What would mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A command for the shell.
    Type(String),
    /// Other flags for the server: the host cannot do what was asked for.
    Give(String),
}

/// What would mend it, and another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The one thing that turns the row to ok.
    #[serde(flatten)]
    pub action: Action,
    /// Another way, in words or as a command.
    #[serde(rename = "or", skip_serializing_if = "Option::is_none")]
    pub also: Option<String>,
}

impl Remedy {
    /// A command.
    pub fn command(command: impl Into<String>) -> Self {
        Self { action: Action::Type(command.into()), also: None }
    }

    /// Other flags.
    pub fn flags(flags: impl Into<String>) -> Self {
        Self { action: Action::Give(flags.into()), also: None }
    }

    /// Adds another way.
    pub fn or(self, also: impl Into<String>) -> Self {
        Self { also: Some(also.into()), ..self }
    }

    /// For a shell that is root's already, which need not have sudo.
    pub fn without_sudo(&mut self) {
        let plain = |text: &mut String| *text = text.replace("sudo ", "");
        match &mut self.action {
            Action::Type(command) => plain(command),
            Action::Give(_) => {}
        }
        self.also.as_mut().map(plain);
    }
}

/// One check. See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Name of the check; each is there once at most.
    pub check: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found: a phrase.
    pub found: String,
    /// What would mend it: there is one for each `Warn` and `Fail`, and for no other.
    #[serde(flatten)]
    pub remedy: Option<Remedy>,
}

impl Row {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), remedy: None }
    }

    /// Does not apply, for this reason.
    pub fn skip(check: &'static str, reason: impl Into<String>) -> Self {
        Self { check, status: Status::Skip, found: reason.into(), remedy: None }
    }

    /// Less than there could be.
    pub fn warn(check: &'static str, found: impl Into<String>, remedy: Remedy) -> Self {
        Self { check, status: Status::Warn, found: found.into(), remedy: Some(remedy) }
    }

    /// The server cannot run like this.
    pub fn fail(check: &'static str, found: impl Into<String>, remedy: Remedy) -> Self {
        Self { check, status: Status::Fail, found: found.into(), remedy: Some(remedy) }
    }
}

/// `text` as one word of a shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The ending of a plural.
pub fn s(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_as_json_has_its_action_beside_it() {
        let row = Row::warn("x", "bad", Remedy::command("sudo mend").or("sudo scripts/mend.sh"));
        let json = serde_json::to_value(&row).unwrap();
        let expected = serde_json::json!({
            "check": "x", "status": "warn", "found": "bad", "type": "sudo mend", "or": "sudo scripts/mend.sh",
        });
        assert_eq!(json, expected);
        let json = serde_json::to_value(Row::skip("x", "no")).unwrap();
        assert_eq!(json, serde_json::json!({ "check": "x", "status": "-", "found": "no" }));
        for status in [Status::Skip, Status::Ok, Status::Warn, Status::Fail] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.word());
        }
    }

    #[test]
    fn root_needs_no_sudo() {
        let mut remedy = Remedy::command("echo 1 | sudo tee /x && sudo y").or("sudo z");
        remedy.without_sudo();
        assert_eq!(remedy, Remedy::command("echo 1 | tee /x && y").or("z"));
    }

    #[test]
    fn words_survive_the_shell() {
        for (text, word) in
            [("/usr/bin/x", "/usr/bin/x"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(text), word);
        }
    }
}
