package cleave

import (
	"runtime"
	"slices"

	"cleave/go/internal/capi"
)

// Detokenizer turns the tokens of one sequence into text as they are generated. Its methods may be called from any
// goroutine, but the tokens of a sequence must be passed in order.
type Detokenizer struct{ object }

// NewDetokenizer creates a detokenizer for one sequence. It stays usable after the model is closed. Errors:
// [ErrUnsupported] (a model without a tokenizer).
func (m *Model) NewDetokenizer() (*Detokenizer, error) {
	defer runtime.KeepAlive(m)
	name, e := capi.DetokenizerCreate(m.name)
	if e != nil {
		return nil, m.wrap(e)
	}
	d := &Detokenizer{}
	own(d, &d.object, name, func() { capi.DetokenizerDestroy(name) })
	return d, nil
}

// Close destroys the detokenizer. It always returns nil, and does nothing the second time.
func (d *Detokenizer) Close() error { return d.close() }

// Append takes the next token of the sequence and appends the text that this token completes. Only whole characters are
// appended, so there is often nothing to append. Errors: [ErrInvalidArgument] (not a token of the model).
func (d *Detokenizer) Append(text []byte, token int32) ([]byte, error) {
	defer runtime.KeepAlive(d)
	return d.fill(text, func(buf []byte) (int, *capi.Error) { return capi.DetokenizerPush(d.name, token, buf) })
}

// AppendRest appends the rest of the text at the end of a sequence: an unfinished character becomes U+FFFD. Afterwards
// the detokenizer is ready for a new sequence.
func (d *Detokenizer) AppendRest(text []byte) ([]byte, error) {
	defer runtime.KeepAlive(d)
	return d.fill(text, func(buf []byte) (int, *capi.Error) { return capi.DetokenizerFlush(d.name, buf) })
}

// fill lets the library write after text. A call whose output does not fit has no effect, so it is repeated with more
// room.
func (d *Detokenizer) fill(text []byte, write func([]byte) (int, *capi.Error)) ([]byte, error) {
	text = slices.Grow(text, 32)
	for {
		room := text[len(text):cap(text)]
		n, e := write(room)
		if n > len(room) {
			text = slices.Grow(text, n)
			continue
		}
		if e != nil {
			return text, d.wrap(e)
		}
		return text[:len(text)+n], nil
	}
}

// Push is like [Detokenizer.Append], but returns a string.
func (d *Detokenizer) Push(token int32) (string, error) {
	var buf [64]byte
	text, err := d.Append(buf[:0], token)
	return string(text), err
}

// Flush is like [Detokenizer.AppendRest], but returns a string.
func (d *Detokenizer) Flush() (string, error) {
	var buf [64]byte
	text, err := d.AppendRest(buf[:0])
	return string(text), err
}
