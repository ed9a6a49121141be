package cleave

import (
	"encoding/json"
	"runtime"

	"cleave/go/internal/capi"
)

// Tokenize turns UTF-8 text into token ids, including the special tokens that the model's tokenizer adds around a text
// (BOS, EOS). Special tokens that are written out in the text become their ids.
//
// Errors: [ErrInvalidArgument] (not UTF-8), [ErrUnsupported] (a model without a tokenizer).
func (m *Model) Tokenize(text string) ([]int32, error) { return m.tokenize(text, 0) }

// TokenizeNoSpecial is like [Model.Tokenize], but adds no tokens around the text. It is for text that already has them,
// such as the result of [Model.ChatPrompt].
func (m *Model) TokenizeNoSpecial(text string) ([]int32, error) {
	return m.tokenize(text, capi.TokenizeNoSpecial)
}

// TokenizePlain turns text into token ids and treats all of it as text. It adds no tokens around it, and special tokens
// that are written out in the text stay text. It is for text typed by users, which the caller puts between tokens of
// its own. Added tokens that the tokenizer does not mark as special keep their ids.
func (m *Model) TokenizePlain(text string) ([]int32, error) {
	return m.tokenize(text, capi.TokenizeNoSpecial|capi.TokenizePlain)
}

func (m *Model) tokenize(text string, flags uint32) ([]int32, error) {
	defer runtime.KeepAlive(m)
	tokens, e := capi.Tokenize(m.name, text, flags)
	return tokens, m.wrap(e)
}

// TokenBytes returns the bytes of a single token, as reported with logprobs. They are not always whole characters. A
// special token gives its written form, and an id that the tokenizer does not know gives nothing. Use a [Detokenizer]
// for the text of a sequence.
//
// Errors: [ErrInvalidArgument] (not a token of the model), [ErrUnsupported] (a model without a tokenizer).
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

// ChatPrompt applies the model's chat template to messages, up to where the assistant's answer begins. Tokenize the
// result with [Model.TokenizeNoSpecial].
//
// Errors: [ErrInvalidArgument] (the template refuses the messages), [ErrUnsupported] (no chat template).
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

// ChatPromptJSON is like [Model.ChatPrompt], for messages with fields that [Message] does not have but the template may
// read. messages is a JSON array of objects.
func (m *Model) ChatPromptJSON(messages []byte) (string, error) {
	return m.ChatPromptWith(messages, ChatOptions{})
}

// ChatOptions holds further input of a chat template for [Model.ChatPromptWith]. All fields are optional.
type ChatOptions struct {
	// Tools is a JSON array of tools in the form of OpenAI's API.
	Tools []byte
	// Arguments is a JSON object of further template variables, such as {"enable_thinking": false}.
	Arguments []byte
	// NoGenerationPrompt ends the prompt after the last message, not where an answer of the assistant begins.
	NoGenerationPrompt bool
	// ContinueFinalMessage leaves the last message open, so that generation continues its text.
	ContinueFinalMessage bool
}

// ChatPromptWith is like [Model.ChatPromptJSON], with tools, template arguments, or another end of the prompt.
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
