//! A mistake on the command line or in the environment as one sentence that names the thing and what to do.

use std::error::Error as _;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

/// Says what is wrong with `words` (the program's name first); `env` reads a variable of the environment.
#[must_use]
pub fn one_sentence(
    error: &clap::Error,
    words: &[String],
    env: impl Fn(&str) -> Option<String>,
) -> String {
    let command = command(words);
    let context = |kind| error.get(kind).map(plain).unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "no command is given; `forebay --help` lists them".to_owned()
        }
        ErrorKind::InvalidSubcommand => format!(
            "there is no command {}; {}`{command} --help` lists all",
            context(ContextKind::InvalidSubcommand),
            similar(&context(ContextKind::SuggestedSubcommand)),
        ),
        ErrorKind::UnknownArgument => {
            let word = context(ContextKind::InvalidArg);
            if word.starts_with('-') {
                let similar = similar(&context(ContextKind::SuggestedArg));
                format!("there is no flag {word}; {similar}`{command} --help` lists all")
            } else {
                format!("{word} is one word too many; `{command} --help` shows what can be given")
            }
        }
        ErrorKind::MissingRequiredArgument => format!(
            "{} is missing; `{command} --help` shows what has to be given",
            context(ContextKind::InvalidArg).replace(['<', '>'], "")
        ),
        ErrorKind::ArgumentConflict => format!(
            "{} is given more than once; give it once",
            flag(&context(ContextKind::InvalidArg))
        ),
        ErrorKind::TooManyValues => format!(
            "{} takes no value; give it alone or leave it out",
            context(ContextKind::InvalidArg)
        ),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => bad_value(error, words, env),
        _ => format!("{}; `{command} --help` lists the flags", first_line(error)),
    }
}

/// A value that a flag or its variable cannot have.
fn bad_value(
    error: &clap::Error,
    words: &[String],
    env: impl Fn(&str) -> Option<String>,
) -> String {
    let context = |kind| error.get(kind).map(plain).unwrap_or_default();
    let (arg, value) = (
        context(ContextKind::InvalidArg),
        context(ContextKind::InvalidValue),
    );
    let flag = flag(&arg);
    let variable = variable(words, flag).filter(|name| {
        env(name).is_some_and(|is| is == value) && !words.iter().any(|word| gives(word, flag))
    });
    if value.is_empty() {
        return match variable {
            Some(name) => format!("{name} is empty; give it a value or unset it"),
            None if !flag.starts_with('-') => format!("{flag} is empty; give it a value"),
            None => format!("{flag} has no value; give one after it"),
        };
    }
    let given = match variable {
        Some(name) => format!("{name}={value}"),
        None => format!("{flag} {value}"),
    };
    let possible = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => values.as_slice(),
        _ => &[],
    };
    match (possible.split_last(), error.source()) {
        (Some((last, [])), _) => format!("{given} is not possible; give {last}"),
        (Some((last, others)), _) => {
            let others = others.join(", ");
            format!("{given} is not possible; give {others} or {last}")
        }
        (None, Some(why)) => format!("{given} cannot be read; {why}"),
        (None, None) => first_line(error),
    }
}

/// The command as far as it was given: `forebay run`.
fn command(words: &[String]) -> String {
    let known = Cli::command();
    let mut known = &known;
    let mut command = "forebay".to_owned();
    for word in words.iter().skip(1) {
        match known.find_subcommand(word) {
            Some(next) => known = next,
            None => break,
        }
        command = format!("{command} {word}");
    }
    command
}

/// `--flag <VALUE>` without its value, or the name of a value without a flag.
fn flag(arg: &str) -> &str {
    let first = arg.split_whitespace().next().unwrap_or_default();
    first.trim_matches(['[', ']', '<', '>', '.'])
}

/// The variable that stands for a flag of the command that was given.
fn variable(words: &[String], flag: &str) -> Option<String> {
    let known = Cli::command();
    let command = known.find_subcommand(words.get(1)?)?;
    let long = flag.strip_prefix("--")?;
    let arg = command.get_arguments().find(|a| a.get_long() == Some(long));
    Some(arg?.get_env()?.to_str()?.to_owned())
}

/// Whether a word of the command line is this flag.
fn gives(word: &str, flag: &str) -> bool {
    word.strip_prefix(flag)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

fn similar(suggestion: &str) -> String {
    if suggestion.is_empty() {
        String::new()
    } else {
        format!("{suggestion} is a similar one, and ")
    }
}

fn plain(value: &ContextValue) -> String {
    match value {
        ContextValue::String(text) => text.clone(),
        ContextValue::Strings(texts) => texts.join(" and "),
        _ => String::new(),
    }
}

/// What the parser says, without the lines of usage below.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn sentence(line: &str, env: &[(&str, &str)]) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let error = Cli::try_parse_from(&words).expect_err("a mistake");
        one_sentence(&error, &words, |name| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn rare_mistakes_are_sentences_too() {
        let table = [
            (
                "forebay run --kubernetes=yes",
                "--kubernetes takes no value; give it alone or leave it out",
            ),
            (
                "forebay status --admin off --admin off",
                "--admin is given more than once; give it once",
            ),
            (
                "forebay explain",
                "URL is missing; `forebay explain --help` shows what has to be given",
            ),
        ];
        for (line, want) in table {
            assert_eq!(sentence(line, &[]), want);
        }
    }

    #[test]
    fn a_flag_that_is_given_is_named_even_if_its_variable_says_the_same() {
        let env = [("FOREBAY_WORKERS", "x")];
        assert_eq!(
            sentence("forebay run --workers x", &env),
            "--workers x cannot be read; give a whole number"
        );
        assert_eq!(
            sentence("forebay run --workers=x", &env),
            "--workers x cannot be read; give a whole number"
        );
    }
}
