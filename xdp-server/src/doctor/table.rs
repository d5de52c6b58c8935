//! The diagnosis as text: a table of at most [`COLUMNS`] columns, with remedies on lines of their own.
//!
//! What is to be typed can be copied as it stands: a command that does not fit is continued, as a shell would
//! want it, with a backslash, and only between words outside of quotes.

use super::row::{Action, Row, Status};
use crate::report::{Ink, paint};

/// Width of the table, in characters: what a terminal beside another on one screen has, and what the other
/// reports keep to. A single word that is longer is not broken.
const COLUMNS: usize = 100;

/// Columns of what was found and of a remedy's text, behind the label.
const LABEL: usize = 12;

/// The rows, all lines ended.
pub fn text(rows: &[Row], colour: bool) -> String {
    let width = rows.iter().map(|row| row.check.len()).chain(["check".len()]).max().unwrap_or(0);
    let indent = width + "  warn  ".len();
    let mut text = paint(colour, Ink::Bold, &format!("{:width$}  {:4}  found", "check", ""));
    text.push('\n');
    for row in rows {
        let mut lines = wrapped(&row.found, COLUMNS - indent, false).into_iter();
        let first = lines.next().unwrap_or_default();
        let status = paint_status(colour, row.status);
        text += &format!("{:width$}  {status}  {first}\n", row.check);
        lines.for_each(|line| text += &format!("{:indent$}{line}\n", ""));
        if let Some(remedy) = &row.remedy {
            let (label, action, is_command) = match &remedy.action {
                Action::Type(command) => ("type", command, true),
                Action::Give(flags) => ("give", flags, false),
            };
            text += &remedy_lines(label, action, is_command);
            if let Some(also) = &remedy.also {
                text += &remedy_lines("or", also, false);
            }
        }
    }
    text
}

fn remedy_lines(label: &str, remedy: &str, is_command: bool) -> String {
    let mut lines = wrapped(remedy, COLUMNS - LABEL, is_command).into_iter();
    let first = format!(
        "    {:width$}{}\n",
        format!("{label}:"),
        lines.next().unwrap_or_default(),
        width = LABEL - 4
    );
    lines.fold(first, |text, line| text + &format!("{:LABEL$}{line}\n", ""))
}

fn paint_status(colour: bool, status: Status) -> String {
    let word = format!("{:4}", status.word());
    match status {
        Status::Skip => word,
        Status::Ok => paint(colour, Ink::Green, &word),
        Status::Warn => paint(colour, Ink::Yellow, &word),
        Status::Fail => paint(colour, Ink::Red, &word),
    }
}

/// `text` in lines of at most `width` characters. In a command lines are continued by a backslash.
fn wrapped(text: &str, width: usize, is_command: bool) -> Vec<String> {
    let continuation = if is_command { " \\" } else { "" };
    let mut lines: Vec<String> = Vec::new();
    for word in words(text, is_command) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() + continuation.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(line) => {
                line.push_str(continuation);
                lines.push(word.to_owned());
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The words of `text`; what is in quotes is in one word, if it is a command.
fn words(text: &str, is_command: bool) -> Vec<&str> {
    let mut quote = None;
    text.split(|c: char| {
        match quote {
            Some(open) if c == open => quote = None,
            None if is_command && (c == '\'' || c == '"') => quote = Some(c),
            _ => {}
        }
        c == ' ' && quote.is_none()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::row::Remedy;
    use super::*;

    #[test]
    fn a_table_is_what_a_reader_sees() {
        let long = "ten words that say a thing or two ".repeat(4);
        let rows = [
            Row::ok("kernel", "6.18.0"),
            Row::skip("governor", "none here"),
            Row::warn("huge pages", long.trim(), Remedy::command("sysctl -w a=1").or("sudo scripts/x.sh")),
            Row::fail("port", "taken", Remedy::flags("--listen [::]:4434")),
        ];
        let expected = "\
check             found
kernel      ok    6.18.0
governor    -     none here
huge pages  warn  ten words that say a thing or two ten words that say a thing or two ten words that
                  say a thing or two ten words that say a thing or two
    type:   sysctl -w a=1
    or:     sudo scripts/x.sh
port        fail  taken
    give:   --listen [::]:4434
";
        assert_eq!(text(&rows, false), expected);
        let coloured = text(&rows, true);
        assert!(coloured.contains("\x1b[31mfail\x1b[0m") && coloured.contains("\x1b[32mok  \x1b[0m"));
        assert_eq!(strip(&coloured), expected);
    }

    fn strip(text: &str) -> String {
        text.split('\x1b')
            .enumerate()
            .map(|(i, part)| if i == 0 { part } else { &part[part.find('m').unwrap() + 1..] })
            .collect()
    }

    #[test]
    fn a_command_of_several_lines_is_still_that_command() {
        let list = (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let command = format!("printf '%s|' a 'b  {list} c' {list} \"x y\"");
        let row = Row::warn("x", "y", Remedy::command(&command));
        let text = text(&[row], false);
        let typed = text.split_once("type:").unwrap().1;
        assert!(typed.trim_end().lines().count() > 1, "{text}");
        let output = |command: &str| {
            let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
            assert!(output.status.success());
            output.stdout
        };
        assert_eq!(output(typed), output(&command));
        let unquoted = text.lines().filter(|line| !line.contains("'b "));
        assert!(
            unquoted.clone().count() > 3 && unquoted.into_iter().all(|line| line.len() <= COLUMNS),
            "{text}"
        );
    }
}
