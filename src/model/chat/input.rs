//! The host's JSON, checked before a template sees it. The rules are those of transformers' `apply_chat_template`.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use crate::error::Result;
use crate::model::json::shown;
use crate::{bail, error};

/// Names that the library gives to templates itself.
const TAKEN: [&str; 5] =
    ["messages", "tools", "add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"];
/// Marks the place up to which a continued message is rendered. The space at its end shows whether the template trims.
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// The names that templates read a message's reasoning by.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One conversation for [`super::ChatTemplate::render`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatInput<'a> {
    /// JSON list of messages.
    pub messages: &'a str,
    /// JSON list of tools in the form of OpenAI's API; empty: none.
    pub tools: &'a str,
    /// JSON object of further variables for the template (`enable_thinking`, `documents`); empty: none.
    pub arguments: &'a str,
    /// Ends the prompt after the last message, not where the assistant's answer begins.
    pub no_generation_prompt: bool,
    /// Leaves the last message open, so that generation continues its text.
    pub continue_final_message: bool,
}

impl ChatInput<'_> {
    /// Bytes of all JSON.
    pub fn bytes(&self) -> usize {
        self.messages.len() + self.tools.len() + self.arguments.len()
    }
}

/// Variables for the template.
pub struct Variables {
    /// Names and values.
    pub values: Vec<(String, Value)>,
    /// Whether the host passed a list of tools.
    pub has_tools: bool,
    /// Text of the message to be continued.
    pub continued: Option<String>,
}

impl Variables {
    /// Parses and checks the host's JSON.
    pub fn new(input: &ChatInput<'_>) -> Result<Variables> {
        let mut messages = messages(input.messages)?;
        let continued = match input.continue_final_message {
            true => Some(mark_final(&mut messages)?),
            false => None,
        };
        let tools = tools(input.tools)?;
        let has_tools = tools.is_some();
        let add_generation_prompt = !input.no_generation_prompt && continued.is_none();
        let mut values = vec![
            ("messages".to_owned(), Value::from_serialize(messages)),
            ("tools".to_owned(), Value::from_serialize(tools)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ];
        let arguments = arguments(input.arguments)?;
        if !arguments.contains_key("documents") {
            values.push(("documents".to_owned(), Value::from(())));
        }
        values.extend(arguments.into_iter().map(|(name, value)| (name, Value::from_serialize(value))));
        Ok(Variables { values, has_tools, continued })
    }
}

fn parse(what: &str, text: &str) -> Result<Json> {
    serde_json::from_str(text).map_err(|e| error!(InvalidArgument, "{what}: malformed JSON: {e}"))
}

fn messages(text: &str) -> Result<Vec<Map<String, Json>>> {
    let Json::Array(list) = parse("messages", text)? else {
        bail!(InvalidArgument, "messages: expected a JSON list of messages");
    };
    let message = |(i, message)| {
        let Json::Object(mut message) = message else {
            bail!(InvalidArgument, "messages[{i}]: expected an object with role and content");
        };
        if !message.get("role").is_some_and(Json::is_string) {
            bail!(InvalidArgument, "messages[{i}]: role: expected a string");
        }
        if let Some(content) = message.get("content")
            && !matches!(content, Json::String(_) | Json::Array(_) | Json::Null)
        {
            let found = shown(content);
            bail!(InvalidArgument, "messages[{i}]: content = {found}: expected a string, a list of parts or null");
        }
        alias_reasoning(&mut message);
        Ok(message)
    };
    list.into_iter().enumerate().map(message).collect()
}

/// Gives a message's reasoning, by whichever name it came, the names that templates look for.
fn alias_reasoning(message: &mut Map<String, Json>) {
    let found = REASONING.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    if let Some(reasoning) = found.cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}

/// Appends the mark to the last text of the last message, and returns that text.
fn mark_final(messages: &mut [Map<String, Json>]) -> Result<String> {
    let Some(last) = messages.last_mut() else {
        bail!(InvalidArgument, "messages: none, and the final one is to be continued");
    };
    let text = match last.get_mut("content") {
        Some(Json::String(text)) => Some(text),
        Some(Json::Array(parts)) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Json::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    };
    let Some(text) = text else {
        bail!(InvalidArgument, "messages: the final message has no text to continue");
    };
    let before = text.clone();
    text.push_str(CONTINUE);
    Ok(before)
}

/// Cuts a rendered prompt where the continued message ends.
pub fn cut_after(mut rendered: String, continued: &str) -> Result<String> {
    let mark = CONTINUE.trim_end();
    let found = rendered.rfind(mark).filter(|_| rendered.contains(continued.trim()));
    let Some(at) = found else {
        bail!(
            InvalidArgument,
            "messages: the template does not render the final message as it is: it cannot be continued"
        );
    };
    let trims = !rendered[at..].starts_with(CONTINUE);
    rendered.truncate(at);
    if trims {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}

fn tools(text: &str) -> Result<Option<Vec<Json>>> {
    if text.is_empty() {
        return Ok(None);
    }
    match parse("tools", text)? {
        Json::Null => Ok(None),
        Json::Array(list) if list.iter().all(Json::is_object) => Ok(Some(list)),
        other => bail!(InvalidArgument, "tools = {}: expected a JSON list of objects", shown(&other)),
    }
}

fn arguments(text: &str) -> Result<Map<String, Json>> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    let map = match parse("arguments", text)? {
        Json::Null => return Ok(Map::new()),
        Json::Object(map) => map,
        other => bail!(InvalidArgument, "arguments = {}: expected a JSON object", shown(&other)),
    };
    for name in map.keys() {
        let mut chars = name.chars();
        let begins = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !begins || !chars.all(|c| c.is_alphanumeric() || c == '_') {
            bail!(
                InvalidArgument,
                "arguments: \"{}\": no name of a template variable",
                shown(&Json::from(name.as_str()))
            );
        }
        if TAKEN.contains(&name.as_str()) {
            bail!(InvalidArgument, "arguments: {name}: has its own parameter");
        }
    }
    if let Some(documents) = map.get("documents")
        && !documents.is_null()
        && !documents.as_array().is_some_and(|list| list.iter().all(Json::is_object))
    {
        bail!(InvalidArgument, "arguments: documents = {}: expected a list of objects", shown(documents));
    }
    Ok(map)
}
