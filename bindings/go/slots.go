package cleave

import "cleave/go/internal/capi"

// receiver gets the events of a request or an import.
type receiver interface {
	// receive handles an event; top holds the alternatives of a token. It must not block.
	receive(event *capi.Event, top []TokenLogprob)
	// abandon reports that no more events will come.
	abandon(err error)
}

// slots maps the numbers that the library echoes to receivers. A number holds the index of a slot and a count of the
// slot's earlier uses, so a late event never finds the slot's next receiver.
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

// find returns nil for a number that is no longer in use.
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

// takeAll removes and returns all receivers.
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
