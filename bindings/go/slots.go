package cleave

import "cleave/go/internal/capi"

// receiver is what events are for: a stream or an import.
type receiver interface {
	// receive takes an event of the receiver's own; top are the alternatives of a token. It must not wait.
	receive(event *capi.Event, top []TokenLogprob)
	// abandon tells that no more events will come.
	abandon(err error)
}

// slots finds receivers by the number that the library echoes: the index of a slot, and how often that was used before,
// so that a number which is late does not find the next one in its slot.
type slots struct {
	all  []slot
	free []uint32
}

type slot struct {
	generation uint32
	receiver   receiver
}

func (s *slots) add(r receiver) (tag uint64) {
	var index uint32
	if n := len(s.free); n > 0 {
		index, s.free = s.free[n-1], s.free[:n-1]
	} else {
		index = uint32(len(s.all))
		s.all = append(s.all, slot{})
	}
	s.all[index].receiver = r
	return uint64(s.all[index].generation)<<32 | uint64(index)
}

// find returns nil for a number that is out of use.
func (s *slots) find(tag uint64) receiver {
	index, generation := uint32(tag), uint32(tag>>32)
	if int(index) >= len(s.all) || s.all[index].generation != generation {
		return nil
	}
	return s.all[index].receiver
}

func (s *slots) remove(tag uint64) {
	if s.find(tag) == nil {
		return
	}
	slot := &s.all[uint32(tag)]
	slot.generation++
	slot.receiver = nil
	s.free = append(s.free, uint32(tag))
}

// takeAll empties it.
func (s *slots) takeAll() []receiver {
	var receivers []receiver
	for index := range s.all {
		if r := s.all[index].receiver; r != nil {
			receivers = append(receivers, r)
			s.remove(uint64(s.all[index].generation)<<32 | uint64(index))
		}
	}
	return receivers
}
