//! The model's chat template: messages in, prompt text out.
//!
//! Templates are Jinja programs that come with the model. They run with a bound on steps and on output; memory
//! inside a template is not bounded (Jinja can double a string in a loop), so a model directory is trusted as
//! far as code is.

use std::io;
use std::path::Path;

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use crate::error::{Error, Result, Status};
use crate::model::chat_functions::{self, Raised};
use crate::model::json::{self, Object, shown};
use crate::{bail, error};

const TEMPLATE_LIMIT: usize = 4 << 20;
const TOKENIZER_CONFIG_LIMIT: usize = 16 << 20;
/// Template steps: a long conversation takes some hundred thousand.
const FUEL: u64 = 20_000_000;
/// Bytes a template may write beyond four times what came in.
const OUTPUT_BASE: usize = 16 << 20;
const NAME: &str = "chat";

/// A compiled template and the special tokens it may name.
pub struct ChatTemplate {
    /// File and key, for errors.
    place: String,
    environment: Environment<'static>,
    special: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// From chat_template.jinja, else `chat_template` of tokenizer_config.json. None: the model has none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let config = Object::read(&dir.join("tokenizer_config.json"), TOKENIZER_CONFIG_LIMIT)?;
        let special = match &config {
            Some(config) => special_tokens(config)?,
            None => Vec::new(),
        };
        let file = dir.join("chat_template.jinja");
        if let Some(source) = json::read_text(&file, TEMPLATE_LIMIT)? {
            return ChatTemplate::compile(file.display().to_string(), &source, special).map(Some);
        }
        let Some(config) = config else { return Ok(None) };
        let place = format!("{}: chat_template", config.place());
        match default_template(&config)? {
            Some(source) => ChatTemplate::compile(place, &source, special).map(Some),
            None => Ok(None),
        }
    }

    /// Compiles a template. `place` is named in errors.
    pub fn compile(place: String, source: &str, special: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        chat_functions::install(&mut environment);
        environment.set_fuel(Some(FUEL));
        let source = chat_functions::without_generation_tags(source);
        if let Err(e) = environment.add_template_owned(NAME, source) {
            bail!(Unsupported, "{place}: {}", describe(&e));
        }
        Ok(ChatTemplate { place, environment, special })
    }

    /// Renders `messages_json`, a list of `{"role": ..., "content": ...}`, as a prompt that ends where the
    /// assistant's answer begins. What the template raises is INVALID_ARGUMENT with its text.
    pub fn render(&self, messages_json: &str) -> Result<String> {
        let messages = messages(messages_json)?;
        let mut variables = vec![
            ("messages", messages),
            ("add_generation_prompt", Value::from(true)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        variables.extend(self.special.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let template = self.environment.get_template(NAME).map_err(|e| self.failed(&e))?;
        let mut out = Bounded { bytes: Vec::new(), limit: OUTPUT_BASE + 4 * messages_json.len() };
        let variables: Value = variables.into_iter().collect();
        let rendered = template.render_captured_to(variables, &mut out);
        if out.bytes.len() > out.limit {
            bail!(InvalidArgument, "{}: wrote more than {} bytes", self.place, out.limit);
        }
        rendered.map_err(|e| self.failed(&e))?;
        String::from_utf8(out.bytes).map_err(|_| error!(Internal, "{}: wrote invalid UTF-8", self.place))
    }

    fn failed(&self, e: &minijinja::Error) -> Error {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
        while let Some(error) = source {
            if let Some(Raised(text)) = error.downcast_ref() {
                return error!(InvalidArgument, "{}: {text}", self.place);
            }
            source = error.source();
        }
        if e.kind() == minijinja::ErrorKind::OutOfFuel {
            return error!(InvalidArgument, "{}: took more than {FUEL} steps", self.place);
        }
        Error::new(Status::InvalidArgument, format!("{}: {}", self.place, describe(e)))
    }
}

fn describe(e: &minijinja::Error) -> String {
    let line = e.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{}{line}", e.kind(), e.detail().map(|d| format!(": {d}")).unwrap_or_default())
}

/// `chat_template` of tokenizer_config.json: a string, or a list of named ones of which "default" is taken.
fn default_template(config: &Object) -> Result<Option<String>> {
    const EXPECTED: &str = "a string or a list of {name, template}";
    use serde_json::Value as Json;
    match config.get("chat_template") {
        None => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(list)) => {
            for entry in list {
                let field = |key: &str| entry.get(key).and_then(Json::as_str);
                let (Some(name), Some(source)) = (field("name"), field("template")) else {
                    return Err(config.wrong("chat_template", EXPECTED));
                };
                if name == "default" {
                    return Ok(Some(source.to_owned()));
                }
            }
            bail!(Unsupported, "{}: chat_template: none of its templates is named \"default\"", config.place())
        }
        Some(_) => Err(config.wrong("chat_template", EXPECTED)),
    }
}

/// Special tokens by the names templates use: strings, or objects with `content`.
fn special_tokens(config: &Object) -> Result<Vec<(&'static str, String)>> {
    let mut special = Vec::new();
    for name in ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"] {
        let Some(value) = config.get(name) else { continue };
        let content = value.as_str().or_else(|| value.get("content")?.as_str());
        let content = content.ok_or_else(|| config.wrong(name, "a string or an object with content"))?;
        special.push((name, content.to_owned()));
    }
    Ok(special)
}

/// Checks what the host passed before the template sees it.
fn messages(text: &str) -> Result<Value> {
    let value: Value =
        serde_json::from_str(text).map_err(|e| error!(InvalidArgument, "messages: malformed JSON: {e}"))?;
    if value.kind() != ValueKind::Seq {
        bail!(InvalidArgument, "messages: expected a JSON list of messages");
    }
    for (i, message) in value.try_iter().into_iter().flatten().enumerate() {
        if message.kind() != ValueKind::Map {
            bail!(InvalidArgument, "messages[{i}]: expected an object with role and content");
        }
        let role = message.get_attr("role").unwrap_or_default();
        if role.kind() != ValueKind::String {
            bail!(InvalidArgument, "messages[{i}]: role: expected a string");
        }
        let content = message.get_attr("content").unwrap_or_default();
        if !matches!(content.kind(), ValueKind::String | ValueKind::Seq | ValueKind::None | ValueKind::Undefined) {
            let found = serde_json::to_value(&content).map(|v| shown(&v)).unwrap_or_default();
            bail!(InvalidArgument, "messages[{i}]: content = {found}: expected a string, a list of parts or null");
        }
    }
    Ok(value)
}

/// Collects output up to a limit, then fails.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = (self.limit + 1).saturating_sub(self.bytes.len());
        if room == 0 {
            return Err(io::Error::other("output limit reached"));
        }
        let n = room.min(data.len());
        self.bytes.extend_from_slice(&data[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
