package cleave

import "cleave/go/internal/capi"

// batch is what one call took from the queue. The library queues a token and its alternatives at once, one behind the
// other: the batch makes one of them, which may begin in one call and end in the next.
type batch struct {
	events    [256]capi.Event
	receivers [256]receiver

	// The token whose alternatives may follow.
	token    capi.Event
	receiver receiver
	top      []TokenLogprob
	// Where alternatives are kept, a piece for many tokens. What was given away is not written again.
	slab []TokenLogprob
}

// deliver hands events on to b.receivers, one for each.
func (b *batch) deliver(events []capi.Event) {
	for i := range events {
		event, r := &events[i], b.receivers[i]
		b.receivers[i] = nil
		if event.Type == capi.EventTopLogprob {
			b.alternative(event)
			continue
		}
		b.flush()
		switch {
		case r == nil:
		case event.Type == capi.EventToken:
			b.token, b.receiver = *event, r
		default:
			r.receive(event, nil)
		}
	}
}

func (b *batch) alternative(event *capi.Event) {
	if b.receiver == nil {
		return
	}
	if len(b.slab) == cap(b.slab) {
		slab := make([]TokenLogprob, len(b.top), 512)
		copy(slab, b.top)
		b.slab = slab
	}
	begin := len(b.slab) - len(b.top)
	b.slab = append(b.slab, TokenLogprob{event.Token, event.Logprob})
	b.top = b.slab[begin:len(b.slab):len(b.slab)]
}

// flush hands the token on.
func (b *batch) flush() {
	if b.receiver == nil {
		return
	}
	b.receiver.receive(&b.token, b.top)
	b.receiver, b.top = nil, nil
}
