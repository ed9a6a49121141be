package cleave

import "cleave/go/internal/capi"

// batch holds the events of one poll. The library queues a token and then its alternatives as separate events. The
// batch merges them into one delivery, even if they begin in one poll and end in the next.
type batch struct {
	events    [256]capi.Event
	receivers [256]receiver

	// The last token received; its alternatives may follow.
	token    capi.Event
	receiver receiver
	top      []TokenLogprob
	// Backing storage of the alternatives, one allocation for many tokens. Elements that were handed out are never
	// overwritten.
	slab []TokenLogprob
}

// deliver passes each event to the receiver at the same index of b.receivers.
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

// flush delivers the pending token.
func (b *batch) flush() {
	if b.receiver == nil {
		return
	}
	b.receiver.receive(&b.token, b.top)
	b.receiver, b.top = nil, nil
}
