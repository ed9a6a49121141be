//! A compiled template, and one rendering of it.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::machinery::{CompiledTemplate, Vm, get_compiled_template, make_string_output};
use minijinja::{AutoEscape, Environment, Value};

use super::budget::{self, Exhausted};
use super::functions::{self, Raised};
use super::guard;
use super::input::{ChatInput, Variables, cut_after};
use crate::error::{Error, Result, Status};
use crate::model::json::{self, Object};
use crate::{bail, error};

const TEMPLATE_LIMIT: usize = 4 << 20;
const TOKENIZER_CONFIG_LIMIT: usize = 16 << 20;
/// Steps of the template's program: a long conversation takes some hundred thousand.
const FUEL: u64 = 5_000_000;
/// Enough for the deepest nesting that `guard` and [`FUEL`] allow: a value nested by every step takes 100 MB of it.
/// Only what is touched becomes memory.
const STACK: usize = 256 << 20;
const PLAIN: &str = "chat";
const WITH_TOOLS: &str = "chat with tools";

/// A compiled template and the special tokens it may name.
pub struct ChatTemplate {
    /// File and key, for errors.
    place: String,
    environment: Environment<'static>,
    special: Vec<(&'static str, String)>,
}

/// Sources of a model's templates.
#[derive(Debug, Default)]
struct Sources {
    plain: Option<String>,
    /// Used instead where there are tools.
    with_tools: Option<String>,
}

impl ChatTemplate {
    /// Reads chat_template.jinja, or else `chat_template` of tokenizer_config.json. None: the model has none.
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
        match named_templates(&config)? {
            Sources { plain: None, with_tools: None } => Ok(None),
            sources => ChatTemplate::new(place, sources, special).map(Some),
        }
    }

    /// Compiles a template. `place` is named in errors.
    pub fn compile(place: String, source: &str, special: Vec<(&'static str, String)>) -> Result<Self> {
        ChatTemplate::new(place, Sources { plain: Some(source.to_owned()), with_tools: None }, special)
    }

    fn new(place: String, sources: Sources, special: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        // Errors do not carry the values of variables.
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        functions::install(&mut environment);
        guard::install(&mut environment);
        let named = [(PLAIN, sources.plain), (WITH_TOOLS, sources.with_tools)];
        let environment = crate::sys::run_with_stack("cleave-template", STACK, || {
            for (name, source) in named {
                let Some(source) = source else { continue };
                let source = guard::check_source(&functions::without_generation_tags(&source));
                let source = source.map_err(|e| error!(Unsupported, "{place}: {e}"))?;
                let compiled = environment.add_template_owned(name, source);
                compiled.map_err(|e| error!(Unsupported, "{place}: {}", describe(&e)))?;
            }
            Ok(environment)
        })??;
        Ok(ChatTemplate { place, environment, special })
    }

    /// Renders a conversation. What the template raises is INVALID_ARGUMENT with its text.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String> {
        crate::sys::run_with_stack("cleave-template", STACK, || self.render_here(input))?
    }

    fn render_here(&self, input: &ChatInput<'_>) -> Result<String> {
        let Variables { values, has_tools, continued } = Variables::new(input)?;
        let with_tools = has_tools.then(|| self.environment.get_template(WITH_TOOLS).ok()).flatten();
        let template = match with_tools {
            Some(template) => template,
            None => self
                .environment
                .get_template(PLAIN)
                .map_err(|_| error!(Unsupported, "{}: none of its templates is named \"default\"", self.place))?,
        };
        let special = self.special.iter().map(|(name, token)| ((*name).to_owned(), Value::from(token.as_str())));
        // The host's arguments go before special tokens of the same name.
        let variables: Value = special.chain(values).collect();
        budget::begin(input.bytes());
        let rendered = self.run(get_compiled_template(&template), variables).map_err(|e| self.failed(&e))?;
        match continued {
            Some(text) => cut_after(rendered, &text),
            None => Ok(rendered),
        }
    }

    fn run(&self, template: &CompiledTemplate<'_>, variables: Value) -> std::result::Result<String, minijinja::Error> {
        let instructions = guard::guarded(&template.instructions)?;
        let mut blocks = BTreeMap::new();
        for (name, block) in &template.blocks {
            blocks.insert(*name, guard::guarded(block)?);
        }
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        Vm::new(&self.environment).eval(&instructions, variables, &blocks, &mut out, AutoEscape::None)?;
        drop(out);
        Ok(text)
    }

    fn failed(&self, e: &minijinja::Error) -> Error {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
        while let Some(error) = source {
            if let Some(Raised(text)) = error.downcast_ref() {
                return error!(InvalidArgument, "{}: {text}", self.place);
            }
            if let Some(exhausted) = error.downcast_ref::<Exhausted>() {
                return error!(InvalidArgument, "{}: {exhausted}", self.place);
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

/// `chat_template` of tokenizer_config.json: a string, or a list of named ones, of which "default" and "tool_use" count.
fn named_templates(config: &Object) -> Result<Sources> {
    const EXPECTED: &str = "a string or a list of {name, template}";
    use serde_json::Value as Json;
    let mut sources = Sources::default();
    match config.get("chat_template") {
        None => {}
        Some(Json::String(source)) => sources.plain = Some(source.clone()),
        Some(Json::Array(list)) => {
            for entry in list {
                let field = |key: &str| entry.get(key).and_then(Json::as_str);
                let (Some(name), Some(source)) = (field("name"), field("template")) else {
                    return Err(config.wrong("chat_template", EXPECTED));
                };
                match name {
                    "default" => sources.plain = Some(source.to_owned()),
                    "tool_use" => sources.with_tools = Some(source.to_owned()),
                    _ => {}
                }
            }
            if sources.plain.is_none() && sources.with_tools.is_none() {
                bail!(Unsupported, "{}: chat_template: none of its templates is named \"default\"", config.place());
            }
        }
        Some(_) => return Err(config.wrong("chat_template", EXPECTED)),
    }
    Ok(sources)
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
