package cleave

import (
	"fmt"
	"math"
	"time"
)

// numbers converts fields to the C API's types, and remembers the first one that is out of range.
type numbers struct{ err error }

func (n *numbers) fail(field string, value any) {
	if n.err == nil {
		n.err = newError(ErrInvalidArgument, fmt.Sprintf("%s %v is out of range", field, value))
	}
}

func (n *numbers) uint32(field string, value int) uint32 {
	if value < 0 || uint64(value) > math.MaxUint32 {
		n.fail(field, value)
		return 0
	}
	return uint32(value)
}

// ticks converts a duration to a whole number of units; a positive duration gives at least 1.
func (n *numbers) ticks(field string, value, unit time.Duration, most uint64) uint64 {
	ticks := uint64(value / unit)
	if value < 0 || ticks > most {
		n.fail(field, value)
		return 0
	}
	if value > 0 {
		ticks = max(ticks, 1)
	}
	return ticks
}

func (n *numbers) milliseconds(field string, value time.Duration) uint32 {
	return uint32(n.ticks(field, value, time.Millisecond, math.MaxUint32))
}
