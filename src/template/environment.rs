//! The template engine as Hugging Face sets it up, within limits.
//!
//! Nothing here includes, imports or extends (the engine is built without it), reads a clock or
//! keeps anything from one rendering to the next.

use std::sync::Arc;

use minijinja::value::{Kwargs, Rest};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::budget::Budget;
use super::error::Limit;
use super::{python, source};

/// Deepest nesting of calls and loops.
const RECURSION_MAX: usize = 100;
/// Widest indentation, in spaces.
const INDENT_MAX: usize = 16;
/// Longest format of a date, in bytes.
const DATE_FORMAT_LEN_MAX_BYTES: usize = 256;

/// Filters that could build much from little and that chat templates do not use.
const FILTERS_LEFT_OUT: &[&str] = &["format", "batch", "slice", "indent", "pprint", "urlencode"];

/// Makes an environment for one rendering.
pub(super) fn environment<'a>(budget: &Arc<Budget>, fuel: u64, now_unix_s: u64) -> Environment<'a> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(RECURSION_MAX);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    for name in FILTERS_LEFT_OUT {
        env.remove_filter(name);
    }
    add_output(&mut env, budget);
    add_functions(&mut env, budget, now_unix_s);
    add_filters(&mut env, budget);
    add_methods(&mut env, budget);
    env
}

fn add_output(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    env.set_formatter(move |output, _, value| {
        if value.as_str().is_none() {
            budget.value(value)?;
        }
        let text = python::text(value);
        budget.write(text.len())?;
        output.write_str(&text).map_err(Error::from)
    });
}

fn add_functions(env: &mut Environment<'_>, budget: &Arc<Budget>, now_unix_s: u64) {
    let raised = Arc::clone(budget);
    env.add_function("raise_exception", move |_: Rest<Value>| -> Result<Value, Error> {
        Err(raised.raise())
    });
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        let short = format.len() <= DATE_FORMAT_LEN_MAX_BYTES;
        let text = python::strftime(format, now_unix_s).filter(|_| short);
        text.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "date format"))
    });
    env.remove_global("debug");
}

fn add_filters(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let spent = Arc::clone(budget);
    env.add_filter(source::BOUND_FILTER, move |value: Value| -> Result<Value, Error> {
        spent.value(&value)?;
        Ok(value)
    });
    let spent = Arc::clone(budget);
    env.add_filter(source::FACTOR_FILTER, move |value: Value| -> Result<Value, Error> {
        spent.factor(&value)?;
        Ok(value)
    });
    let spent = Arc::clone(budget);
    env.add_filter("tojson", move |value: Value, options: Kwargs| -> Result<String, Error> {
        let indent: Option<usize> = options.get("indent")?;
        let _: Option<Value> = options.get("ensure_ascii")?;
        let _: Option<Value> = options.get("separators")?;
        let _: Option<Value> = options.get("sort_keys")?;
        options.assert_all_used()?;
        spent.value(&value)?;
        let text = python::json(&value, indent.map(|width| width.min(INDENT_MAX)));
        let text = text.map_err(|_| Error::from(ErrorKind::BadSerialization))?;
        spent.copy(text.len())?;
        Ok(text)
    });
    let spent = Arc::clone(budget);
    env.add_filter("string", move |value: Value| -> Result<String, Error> {
        spent.value(&value)?;
        Ok(python::text(&value))
    });
    let spent = Arc::clone(budget);
    env.add_filter("join", move |list: Value, joiner: Option<Value>| -> Result<String, Error> {
        let joiner = joiner.unwrap_or_default();
        join(&spent, &list, joiner.as_str().unwrap_or_default())
    });
    let spent = Arc::clone(budget);
    env.add_filter("list", move |state: &State, value: Value| -> Result<Value, Error> {
        spent.list(if value.is_undefined() { Some(0) } else { value.len() })?;
        minijinja::filters::list(state, value)
    });
    let spent = Arc::clone(budget);
    env.add_filter("replace", move |text: &str, old: &str, new: &str| -> Result<String, Error> {
        replace(&spent, text, old, new)
    });
}

/// Joins a list; the sum is checked before anything is built.
fn join(budget: &Budget, list: &Value, joiner: &str) -> Result<String, Error> {
    budget.list(list.len())?;
    let mut joined = String::new();
    for (index, item) in list.try_iter()?.enumerate() {
        budget.value(&item)?;
        let text = python::text(&item);
        let joiner = if index == 0 { "" } else { joiner };
        budget.copy(joined.len().saturating_add(joiner.len() + text.len()))?;
        joined.push_str(joiner);
        joined.push_str(&text);
    }
    Ok(joined)
}

fn replace(budget: &Budget, text: &str, old: &str, new: &str) -> Result<String, Error> {
    budget.copy(text.len())?;
    let grown = text.matches(old).count().saturating_mul(new.len());
    budget.copy(text.len().saturating_add(grown))?;
    Ok(text.replace(old, new))
}

/// Python's methods, those bounded that could build much from little.
fn add_methods(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    env.set_unknown_method_callback(move |state, value, method, args| {
        let Some(text) = value.as_str() else {
            budget.value(value)?;
            return pycompat::unknown_method_callback(state, value, method, args);
        };
        budget.copy(text.len())?;
        let argument = |index: usize| args.get(index).and_then(Value::as_str);
        match method {
            "join" if args.len() == 1 => return join(&budget, &args[0], text).map(Value::from),
            "replace" if args.len() == 2 => {
                if let (Some(old), Some(new)) = (argument(0), argument(1)) {
                    return replace(&budget, text, old, new).map(Value::from);
                }
            }
            "split" | "rsplit" | "splitlines" => {
                let pieces = match argument(0) {
                    Some(separator) => text.matches(separator).count(),
                    None => text.chars().filter(|c| c.is_whitespace()).count(),
                };
                budget.list(Some(pieces))?;
            }
            "replace" | "join" | "format" => return Err(Error::from(ErrorKind::UnknownMethod)),
            _ => {}
        }
        pycompat::unknown_method_callback(state, value, method, args)
    });
}

/// Returns which limit an error of the engine is about.
pub(super) fn limit_of(error: &Error) -> Option<Limit> {
    match error.kind() {
        ErrorKind::OutOfFuel => Some(Limit::Fuel),
        ErrorKind::WriteFailure => Some(Limit::OutputLen),
        ErrorKind::InvalidOperation | ErrorKind::SyntaxError => {
            let recursion = error.detail().is_some_and(|detail| detail.contains("recursion limit"));
            recursion.then_some(Limit::Depth)
        }
        _ => None,
    }
}
