//! The model's chat template: messages in, prompt text out.
//!
//! Templates are Jinja programs that come with the model, so a model directory could hold any program. It can cost a
//! bounded amount of time and memory and nothing else: `guard` bounds what its source may look like and charges for
//! everything it makes, `budget` is what it may spend, and it runs on a thread whose stack is large enough for the
//! deepest nesting that those two let through.
//!
//! | file | idea |
//! | --- | --- |
//! | `template` | a compiled template, its special tokens, one rendering |
//! | `input` | the host's JSON: messages, tools, template arguments |
//! | `functions`, `tojson`, `strftime` | Hugging Face's additions to Jinja |
//! | `guard`, `costs`, `budget` | limits |

mod budget;
mod costs;
mod functions;
mod guard;
mod input;
mod strftime;
mod template;
mod tojson;

pub use input::ChatInput;
pub use template::ChatTemplate;
