//! text, for hosts without a tokenizer of their own
//!
//! All of these are UNSUPPORTED on a model that came without tokenizer files.

use super::boundary::{call, call_void, fill, fill_text, known_flags, put, required, string};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_detokenizer, cleave_detokenizer_t, cleave_model_t};
use super::registry::{self, Kind, Object};
use crate::bail;
use crate::error::Result;
use crate::model::Model;
use crate::model::chat::ChatInput;
use crate::model::detokenizer::Detokenizer;
use libc::{c_char, c_void, size_t};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Adds no tokens around the text (BOS, EOS): for text that holds them already, such as a prompt from
/// cleave_chat_prompt.
pub const CLEAVE_TOKENIZE_NO_SPECIAL: u32 = 1 << 0;
/// Treats special tokens that are written out in the text as text, so that what a user typed cannot end a turn or begin
/// another. Added tokens that the tokenizer does not mark as special keep their ids.
pub const CLEAVE_TOKENIZE_PLAIN: u32 = 1 << 1;

/// Turns `len` bytes of UTF-8, at most 8 MiB, into token ids. Special tokens that the model's tokenizer puts around a
/// text are added unless CLEAVE_TOKENIZE_NO_SPECIAL is among `flags`; special tokens written out in the text become
/// their ids unless CLEAVE_TOKENIZE_PLAIN is. `*n` is the number of tokens; (`tokens`, `cap`, `n`) follow the
/// conventions for buffers above.
///
/// Callable from any thread. [BLOCKING] The first text function called on a model builds its tokenizer, which takes up
/// to seconds for large vocabularies; after that the time grows with the text. Errors: INVALID_ARGUMENT (not UTF-8, too
/// long, buffer too small), NOT_FOUND, UNSUPPORTED, CORRUPT (tokenizer.json).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_tokenize(
    model: *const cleave_model_t,
    text: *const c_char,
    len: size_t,
    flags: u32,
    tokens: *mut i32,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(n, "n")?;
        let text = string(text, len, "text")?;
        known_flags(flags, CLEAVE_TOKENIZE_NO_SPECIAL | CLEAVE_TOKENIZE_PLAIN, "flags")?;
        let (add, parse) = (flags & CLEAVE_TOKENIZE_NO_SPECIAL == 0, flags & CLEAVE_TOKENIZE_PLAIN == 0);
        let ids: Vec<i32> = model.tokenize(text, add, parse)?.into_iter().map(|id| id as i32).collect();
        fill(&ids, tokens, cap, n, "tokens")
    })
}

/// Ends the prompt after the last message, not where an answer of the assistant begins.
pub const CLEAVE_CHAT_NO_GENERATION_PROMPT: u32 = 1 << 0;
/// Leaves the last message open, so that generation continues its text: the prompt ends where that text ends. Implies
/// CLEAVE_CHAT_NO_GENERATION_PROMPT.
pub const CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE: u32 = 1 << 1;

/// Applies the model's chat template to `messages_json`, a JSON array of messages ([{"role": "user", "content": "..."},
/// ...]). The prompt ends where the assistant's answer begins unless `flags` say otherwise. Tokenise it with
/// CLEAVE_TOKENIZE_NO_SPECIAL. (`text`, `cap`, `n`) follow the conventions for buffers above.
///
/// `tools_json` is a JSON array of tools in the form that OpenAI's API has, `arguments_json` a JSON object of further
/// variables for the template, such as {"enable_thinking": false} or {"documents": [...]}; NULL with length 0 for none.
/// Both mean what they mean to apply_chat_template of Hugging Face's transformers; a template ignores what it does not
/// know.
///
/// A template is a program that comes with the model. It may take 30 seconds, 5,000,000 steps and 64 MiB of memory and
/// 64 bytes for each byte of the three texts; it reads nothing but these texts and the time, and writes nothing else.
///
/// Callable from any thread. [BLOCKING] Runs the template on a thread of its own; mostly less than a millisecond.
/// Errors: INVALID_ARGUMENT (not JSON, what the template refuses or takes too much for, buffer too small), NOT_FOUND,
/// UNSUPPORTED (no chat template, one that is no valid program), CORRUPT (tokenizer_config.json), OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_chat_prompt(
    model: *const cleave_model_t,
    messages_json: *const c_char,
    messages_len: size_t,
    tools_json: *const c_char,
    tools_len: size_t,
    arguments_json: *const c_char,
    arguments_len: size_t,
    flags: u32,
    text: *mut c_char,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(n, "n")?;
        known_flags(flags, CLEAVE_CHAT_NO_GENERATION_PROMPT | CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE, "flags")?;
        let prompt = model.chat_prompt(&ChatInput {
            messages: string(messages_json, messages_len, "messages_json")?,
            tools: string(tools_json, tools_len, "tools_json")?,
            arguments: string(arguments_json, arguments_len, "arguments_json")?,
            no_generation_prompt: flags & CLEAVE_CHAT_NO_GENERATION_PROMPT != 0,
            continue_final_message: flags & CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE != 0,
        })?;
        fill_text(&prompt, text, cap, n)
    })
}

/// Writes the bytes that `token` stands for by itself, as logprobs report them. They need not be whole characters; a
/// special token gives its written form, an id that the tokenizer does not know nothing. For the text of a sequence use
/// a detokenizer.
/// (`buf`, `cap`, `n`) follow the conventions for buffers above.
///
/// Callable from any thread. Errors: INVALID_ARGUMENT (no token of the model, buffer too small), NOT_FOUND, UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_token_bytes(
    model: *const cleave_model_t,
    token: i32,
    buf: *mut c_void,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(n, "n")?;
        let Ok(token) = u32::try_from(token) else { bail!(InvalidArgument, "token {token} is negative") };
        fill(&model.token_bytes(token)?, buf.cast::<u8>(), cap, n, "buf")
    })
}

/// A detokenizer and the text that did not fit into the host's buffer.
struct Stream {
    inner: Detokenizer,
    /// The token whose push was refused, and its text.
    held: Option<(i32, String)>,
}

impl Object for Mutex<Stream> {
    type C = cleave_detokenizer;
    const KIND: Kind = Kind::Detokenizer;
}

impl Stream {
    /// Text of `token`, which a refused push may have taken in already.
    fn text_of(&mut self, token: i32) -> Result<String> {
        let mut text = match self.held.take() {
            Some((held, text)) if held == token => return Ok(text),
            Some((_, text)) => text,
            None => String::new(),
        };
        text.push_str(&self.inner.push(token as u32)?);
        Ok(text)
    }
}

fn lock(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a detokenizer for one sequence. `*out` is the caller's, to be ended with cleave_detokenizer_destroy; it
/// outlives a release of the model. Callable from any thread. [BLOCKING] As cleave_tokenize, in the first text function
/// of a model. Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED, CORRUPT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_detokenizer_create(
    model: *const cleave_model_t,
    out: *mut *mut cleave_detokenizer_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(out, "out")?;
        let stream = Stream { inner: model.detokenizer(true)?, held: None };
        put(out, registry::insert(Arc::new(Mutex::new(stream)))?);
        Ok(())
    })
}

/// Takes the next token of the sequence and gives the text that is complete with it: whole characters only, so often
/// nothing. (`text`, `cap`, `n`) follow the conventions for buffers above; a push that was refused for its buffer, or
/// that asked for the length, is repeated with the same token. 256 bytes are enough for most tokens, not for all.
///
/// Callable from any thread; one sequence's tokens have to come in order. Errors: INVALID_ARGUMENT (no token of the
/// model, buffer too small), NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_detokenizer_push(
    d: *mut cleave_detokenizer_t,
    token: i32,
    text: *mut c_char,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let stream = registry::get::<Mutex<Stream>>(d, "d")?;
        required(n, "n")?;
        if token < 0 {
            bail!(InvalidArgument, "token {token} is negative");
        }
        let mut stream = lock(&stream);
        let ready = stream.text_of(token)?;
        let result = fill_text(&ready, text, cap, n);
        if result.is_err() || text.is_null() {
            stream.held = Some((token, ready));
        }
        result
    })
}

/// Gives what is left at the end of a sequence: an unfinished character as U+FFFD. Afterwards the detokenizer is as
/// new. (`text`, `cap`, `n`) follow the conventions for buffers above; a call that was refused for its buffer, or that
/// asked for the length, is repeated. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_detokenizer_flush(
    d: *mut cleave_detokenizer_t,
    text: *mut c_char,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let stream = registry::get::<Mutex<Stream>>(d, "d")?;
        required(n, "n")?;
        let mut stream = lock(&stream);
        let mut rest = stream.held.take().map_or_else(String::new, |(_, text)| text);
        rest.push_str(stream.inner.flush().as_ref());
        let result = fill_text(&rest, text, cap, n);
        if result.is_err() || text.is_null() {
            // No token: the next call of either kind gives this text first.
            stream.held = Some((-1, rest));
        }
        result
    })
}

/// Ends a detokenizer. NULL and one that was destroyed before are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_detokenizer_destroy(d: *mut cleave_detokenizer_t) {
    if !d.is_null() {
        call_void(|| registry::take::<Mutex<Stream>>(d, "d").map(drop));
    }
}
