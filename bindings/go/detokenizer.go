package cleave

import (
	"runtime"
	"slices"

	"cleave/go/internal/capi"
)

// Detokenizer turns the tokens of one sequence into text as they come. Its methods may be called from any goroutine, but
// the tokens of a sequence have to come in order.
type Detokenizer struct{ object }

// NewDetokenizer makes a detokenizer for one sequence. It outlives a Close of the model. Errors: [ErrUnsupported] (a
// model without a tokenizer).
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

// Close ends the detokenizer. It always returns nil, and does nothing the second time.
func (d *Detokenizer) Close() error { return d.close() }

// Append takes the next token of the sequence and appends to text what is complete with it: whole characters only, so
// often nothing. Errors: [ErrInvalidArgument] (no token of the model).
func (d *Detokenizer) Append(text []byte, token int32) ([]byte, error) {
	defer runtime.KeepAlive(d)
	return d.fill(text, func(buf []byte) (int, *capi.Error) { return capi.DetokenizerPush(d.name, token, buf) })
}

// AppendRest appends what is left at the end of a sequence: an unfinished character as U+FFFD. Afterwards the
// detokenizer is as new.
func (d *Detokenizer) AppendRest(text []byte) ([]byte, error) {
	defer runtime.KeepAlive(d)
	return d.fill(text, func(buf []byte) (int, *capi.Error) { return capi.DetokenizerFlush(d.name, buf) })
}

// fill lets the library write behind text. What did not fit has not happened, and is done again with more room.
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

// Push is [Detokenizer.Append] for a string.
func (d *Detokenizer) Push(token int32) (string, error) {
	var buf [64]byte
	text, err := d.Append(buf[:0], token)
	return string(text), err
}

// Flush is [Detokenizer.AppendRest] for a string.
func (d *Detokenizer) Flush() (string, error) {
	var buf [64]byte
	text, err := d.AppendRest(buf[:0])
	return string(text), err
}
