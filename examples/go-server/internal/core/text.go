package core

import cleave "cleave/go"

// primingTokens is how many of the tokens before a generation its detokenizer sees. A character has at most four
// tokens, and a tokenizer that begins a text without a space needs one more.
const primingTokens = 8

// text turns the tokens of one generation into text that no stop string can cut any more.
type text struct {
	detokenizer *cleave.Detokenizer
	stop        stopMatcher
}

// newText creates the text of a generation that follows the tokens `before`. After them a character may be unfinished,
// for example where another engine began with it.
func newText(model *cleave.Model, before []int32, stop stopMatcher) (*text, error) {
	detokenizer, err := model.NewDetokenizer()
	if err != nil {
		return nil, err
	}
	t := &text{detokenizer, stop}
	for _, token := range before[max(0, len(before)-primingTokens):] {
		if _, err := detokenizer.Push(token); err != nil {
			detokenizer.Close()
			return nil, err
		}
	}
	return t, nil
}

// push returns the text that a token completes, and the text that is decided with it. Stop strings end the text only
// if `match` is set.
func (t *text) push(token int32, match bool) (raw, decided string, err error) {
	if raw, err = t.detokenizer.Push(token); err != nil {
		return "", "", err
	}
	if !match {
		return raw, raw, nil
	}
	return raw, t.stop.push(raw), nil
}

// rest returns the text that is left at the end. An unfinished character becomes U+FFFD.
func (t *text) rest() (string, error) {
	raw, err := t.detokenizer.Flush()
	if err != nil {
		return "", err
	}
	return t.stop.push(raw) + t.stop.held, nil
}
