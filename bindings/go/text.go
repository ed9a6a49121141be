package cleave

import (
	"encoding/json"
	"runtime"

	"cleave/go/internal/capi"
)

// Tokenize turns UTF-8 text into token ids, with the special tokens that the model's tokenizer puts around a text (BOS,
// EOS). Special tokens that are written out in the text become their ids.
//
// Errors: [ErrInvalidArgument] (not UTF-8), [ErrUnsupported] (a model without a tokenizer).
func (m *Model) Tokenize(text string) ([]int32, error) { return m.tokenize(text, 0) }

// TokenizeNoSpecial is [Model.Tokenize] without tokens around the text: for text that holds them already, as that of
// [Model.ChatPrompt] does.
func (m *Model) TokenizeNoSpecial(text string) ([]int32, error) {
	return m.tokenize(text, capi.TokenizeNoSpecial)
}

// TokenizePlain turns text into token ids and treats it as nothing but text: no tokens around it, and special tokens that
// are written out in it stay text. It is for what users typed, between tokens of the caller's own. Added tokens that the
// tokenizer does not mark as special keep their ids.
func (m *Model) TokenizePlain(text string) ([]int32, error) {
	return m.tokenize(text, capi.TokenizeNoSpecial|capi.TokenizePlain)
}

func (m *Model) tokenize(text string, flags uint32) ([]int32, error) {
	defer runtime.KeepAlive(m)
	tokens, e := capi.Tokenize(m.name, text, flags)
	return tokens, m.wrap(e)
}

// TokenBytes returns the bytes that a token stands for by itself, as logprobs report them: not always whole
// characters; of a special token its written form, of an id that the tokenizer does not know nothing. For the text of
// a sequence use a [Detokenizer].
//
// Errors: [ErrInvalidArgument] (no token of the model), [ErrUnsupported] (a model without a tokenizer).
func (m *Model) TokenBytes(token int32) ([]byte, error) {
	defer runtime.KeepAlive(m)
	bytes, e := capi.TokenBytes(m.name, token)
	return bytes, m.wrap(e)
}

// Message is one turn of a chat, for [Model.ChatPrompt].
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// ChatPrompt applies the model's chat template to messages, up to where the assistant's answer begins. Tokenise the
// result with [Model.TokenizeNoSpecial].
//
// Errors: [ErrInvalidArgument] (what the template refuses), [ErrUnsupported] (no chat template).
func (m *Model) ChatPrompt(messages []Message) (string, error) {
	if messages == nil {
		messages = []Message{}
	}
	text, err := json.Marshal(messages)
	if err != nil {
		return "", newError(ErrInvalidArgument, "messages", err)
	}
	return m.ChatPromptJSON(text)
}

// ChatPromptJSON is [Model.ChatPrompt] for messages with other fields than those of [Message], as a template may read
// them: messages is a JSON array of objects.
func (m *Model) ChatPromptJSON(messages []byte) (string, error) {
	return m.ChatPromptWith(messages, ChatOptions{})
}

// ChatOptions is what [Model.ChatPromptWith] gives a chat template beside the messages. All of it may be left out.
type ChatOptions struct {
	// Tools is a JSON array of tools in the form that OpenAI's API has.
	Tools []byte
	// Arguments is a JSON object of further variables for the template: {"enable_thinking": false}.
	Arguments []byte
	// NoGenerationPrompt ends the prompt after the last message, not where an answer of the assistant begins.
	NoGenerationPrompt bool
	// ContinueFinalMessage leaves the last message open, so that generation continues its text.
	ContinueFinalMessage bool
}

// ChatPromptWith is [Model.ChatPromptJSON] with tools, arguments for the template, or another end.
func (m *Model) ChatPromptWith(messages []byte, options ChatOptions) (string, error) {
	defer runtime.KeepAlive(m)
	var flags uint32
	if options.NoGenerationPrompt {
		flags |= capi.ChatNoGenerationPrompt
	}
	if options.ContinueFinalMessage {
		flags |= capi.ChatContinueFinalMessage
	}
	text, e := capi.ChatPrompt(m.name, messages, options.Tools, options.Arguments, flags)
	return string(text), m.wrap(e)
}

// Detokenize returns the text of a whole sequence.
func (m *Model) Detokenize(tokens []int32) (string, error) {
	d, err := m.NewDetokenizer()
	if err != nil {
		return "", err
	}
	defer d.Close()
	var text []byte
	for _, token := range tokens {
		if text, err = d.Append(text, token); err != nil {
			return "", err
		}
	}
	text, err = d.AppendRest(text)
	return string(text), err
}
