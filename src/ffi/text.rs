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
use crate::model::detokenizer::Detokenizer;
use libc::{c_char, c_void, size_t};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Adds no tokens around the text (BOS, EOS): for text that holds them already, as cleave_chat_prompt's does.
pub const CLEAVE_TOKENIZE_NO_SPECIAL: u32 = 1 << 0;

/// Turns `len` bytes of UTF-8 into token ids, with the special tokens that the model's tokenizer puts around a text
/// unless CLEAVE_TOKENIZE_NO_SPECIAL is among `flags`. Special tokens written out in the text become their ids.
/// `*n` is the number of tokens; (`tokens`, `cap`, `n`) follow the conventions for buffers above.
///
/// Callable from any thread. Errors: INVALID_ARGUMENT (not UTF-8, buffer too small), NOT_FOUND, UNSUPPORTED.
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
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(n, "n")?;
        let text = string(text, len, "text")?;
        known_flags(flags, CLEAVE_TOKENIZE_NO_SPECIAL, "flags")?;
        let ids = model.tokenize(text, flags & CLEAVE_TOKENIZE_NO_SPECIAL == 0, true)?;
        let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
        fill(&ids, tokens, cap, n, "tokens")
    })
}

/// Applies the model's chat template to a JSON array of messages ([{"role": "user", "content": "..."}, ...]), up to
/// where the assistant's answer begins. Tokenise the result with CLEAVE_TOKENIZE_NO_SPECIAL. (`text`, `cap`, `n`)
/// follow the conventions for buffers above.
///
/// Callable from any thread. Errors: INVALID_ARGUMENT (not JSON, what the template refuses, buffer too small),
/// NOT_FOUND, UNSUPPORTED (no chat template).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_chat_prompt(
    model: *const cleave_model_t,
    messages_json: *const c_char,
    len: size_t,
    text: *mut c_char,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        required(n, "n")?;
        let prompt = model.chat_prompt(string(messages_json, len, "messages_json")?)?;
        fill_text(&prompt, text, cap, n)
    })
}

/// The bytes that `token` stands for by itself, as logprobs report them: not always whole characters; of a special token
/// its written form, of an id that the tokenizer does not know nothing. For the text of a sequence use a detokenizer.
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
/// outlives a release of the model. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_detokenizer_create(
    model: *const cleave_model_t,
    out: *mut *mut cleave_detokenizer_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
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
