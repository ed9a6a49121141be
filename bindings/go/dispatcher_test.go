package cleave

import (
	"testing"

	"cleave/go/internal/capi"
)

// recorder records the events that a dispatcher delivers.
type recorder struct {
	events []capi.Event
	top    [][]TokenLogprob
	err    error
}

func (r *recorder) receive(event *capi.Event, top []TokenLogprob) {
	r.events, r.top = append(r.events, *event), append(r.top, top)
}

func (r *recorder) abandon(err error) { r.err = err }

// An engine failure cannot be provoked from Go, so the test injects the event that the library would send.
func TestEngineFailure(t *testing.T) {
	queue := must[*Queue](t)(NewQueue(0))
	defer queue.Close()
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Queue: queue})
	if queue.Err() != nil || engine.Err() != nil {
		t.Fatal(queue.Err(), engine.Err())
	}
	select {
	case <-engine.Failed():
		t.Fatal("failed already")
	default:
	}
	d := &dispatcher{failed: make(chan struct{})}
	d.dispatch([]capi.Event{{Type: capi.EventEngineFailed, Status: int32(ErrInternal)}, {Type: capi.EventEngineFailed, Status: int32(ErrDevice)}})
	expect(t, (&Queue{dispatcher: d}).Err(), ErrInternal)
	expect(t, (&Engine{queue: d}).Err(), ErrInternal)
	<-(&Queue{dispatcher: d}).Failed()
	<-(&Engine{queue: d}).Failed()
}

// Events of unknown types, and events for receivers that are gone or never existed, are ignored. Numbers are not
// reused.
func TestEventsForNobody(t *testing.T) {
	d := &dispatcher{failed: make(chan struct{})}
	var first, second recorder
	one := must[uint64](t)(d.register(&first))
	d.dispatch([]capi.Event{{Type: capi.EventFinished, Tag: one}})
	two := must[uint64](t)(d.register(&second))
	if one == two || uint32(one) != uint32(two) {
		t.Fatalf("%x %x", one, two)
	}
	d.dispatch([]capi.Event{
		{Type: capi.EventToken, Tag: one}, {Type: capi.EventTopLogprob, Tag: one}, {Type: 77, Tag: 1 << 20}, {Type: capi.EventToken, Tag: two},
	})
	d.batch.flush()
	if len(first.events) != 1 || len(second.events) != 1 || second.top[0] != nil {
		t.Errorf("%+v %+v", first, second)
	}
	d.abandonAll(ErrShutdown)
	if first.err != nil || second.err != ErrShutdown {
		t.Errorf("%v %v", first.err, second.err)
	}
	if _, err := d.register(&first); err == nil {
		t.Error("a queue that is gone took a receiver")
	}
}

// A token and its alternatives arrive as one event, wherever a batch ends.
func TestAlternativesAcrossBatches(t *testing.T) {
	var r recorder
	d := &dispatcher{failed: make(chan struct{})}
	tag := must[uint64](t)(d.register(&r))
	const tokens = 300
	for i := range tokens {
		group := []capi.Event{{Type: capi.EventToken, Tag: tag, Token: int32(i)}}
		for k := range i % 7 {
			group = append(group, capi.Event{Type: capi.EventTopLogprob, Tag: tag, Token: int32(1000*i + k)})
		}
		for begin := 0; begin < len(group); begin += 3 {
			d.dispatch(group[begin:min(begin+3, len(group))])
		}
	}
	d.batch.flush()
	if len(r.events) != tokens {
		t.Fatal(len(r.events))
	}
	for i, top := range r.top {
		if int(r.events[i].Token) != i || len(top) != i%7 {
			t.Fatalf("%d: %+v %v", i, r.events[i], top)
		}
		for k, alternative := range top {
			if int(alternative.Token) != 1000*i+k {
				t.Fatalf("%d: %v", i, top)
			}
		}
	}
}

func TestSlots(t *testing.T) {
	var s slots
	receivers := make([]recorder, 100)
	tags := map[uint64]bool{}
	for range 50 {
		var used []uint64
		for i := range receivers {
			tag := s.add(&receivers[i])
			if tags[tag] || s.find(tag) != &receivers[i] {
				t.Fatalf("%x", tag)
			}
			tags[tag] = true
			used = append(used, tag)
		}
		for _, tag := range used {
			s.remove(tag)
			s.remove(tag)
			if s.find(tag) != nil {
				t.Fatalf("%x", tag)
			}
		}
	}
	if len(s.all) != 100 || len(s.free) != 100 || s.find(1<<40) != nil {
		t.Errorf("%d slots, %d free", len(s.all), len(s.free))
	}
}
