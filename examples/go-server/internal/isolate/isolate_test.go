package isolate

import (
	"syscall"
	"testing"
	"time"
)

func TestTheEndDoesNotWaitForTheNextStart(t *testing.T) {
	p := &parent{closed: make(chan struct{})}
	if !p.rest(time.Nanosecond) {
		t.Error("the pause is over, and nobody ended the server")
	}
	rested := make(chan bool)
	go func() { rested <- p.rest(time.Hour) }()
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGKILL)
	if <-rested {
		t.Error("a server that is to end starts a child again")
	}
}
