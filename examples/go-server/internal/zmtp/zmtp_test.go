package zmtp

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// pipe returns a connection after the handshake, and the raw bytes of its peer.
func pipe(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	theirs.SetDeadline(time.Now().Add(time.Minute))
	done := make(chan *Conn)
	go func() {
		c, err := Handshake(ours, "PUB")
		if err != nil {
			t.Error(err)
		}
		done <- c
	}()
	if _, err := theirs.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, 64)
	copy(greeting, "\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01NULL")
	if _, err := theirs.Write(greeting); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 100)
	n, err := theirs.Read(ready)
	if err != nil || !bytes.Contains(ready[:n], []byte("\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB")) {
		t.Fatalf("%q %v", ready[:n], err)
	}
	if _, err := theirs.Write([]byte("\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB")); err != nil {
		t.Fatal(err)
	}
	return <-done, theirs
}

func TestMessages(t *testing.T) {
	c, theirs := pipe(t)
	go theirs.Write([]byte("\x00\x03\x01kv" + "\x04\x0d\x09SUBSCRIBEkve" + "\x04\x08\x06CANCELx" + "\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02ab"))
	for _, wanted := range []string{"\x01kv", "\x01kve", "\x00x", "|ab"} {
		message, err := c.Read()
		if got := string(bytes.Join(message, []byte("|"))); err != nil || got != wanted {
			t.Errorf("%q %v: %q was wanted", got, err, wanted)
		}
	}
	go c.Write([]byte("a"), nil, []byte(strings.Repeat("b", 300)))
	wanted := "\x01\x01a\x01\x00\x02\x00\x00\x00\x00\x00\x00\x01\x2c" + strings.Repeat("b", 300)
	got := make([]byte, len(wanted))
	if _, err := theirs.Read(got); err != nil || string(got) != wanted {
		t.Errorf("%q %v", got, err)
	}
	// A heartbeat is answered with what it brought.
	go theirs.Write([]byte("\x04\x09\x04PING\x00\x01xy"))
	go c.Read()
	pong := make([]byte, 9)
	if _, err := theirs.Read(pong); err != nil || string(pong) != "\x04\x07\x04PONGxy" {
		t.Errorf("%q %v", pong, err)
	}
}

// Malformed input from a stranger uses little memory, and other subscribers are still served.
func TestStrangers(t *testing.T) {
	for _, sent := range []string{
		"\x02\x7f\xff\xff\xff\xff\xff\xff\xff",              // a frame of 2^63 bytes
		"\x02\x00\x00\x00\x00\x00\x01\x00\x01",              // one that is a byte too long
		strings.Repeat("\x01\x00", mostFrames) + "\x00\x00", // too many frames
	} {
		c, theirs := pipe(t)
		go theirs.Write([]byte(sent))
		if message, err := c.Read(); err == nil {
			t.Errorf("%q was taken for %q", sent, message)
		}
	}
	for _, greeting := range []string{"GET / HTTP/1.1\r\n", "\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE"} {
		ours, theirs := net.Pipe()
		go func() {
			theirs.Write(append([]byte(greeting), make([]byte, 64)...)[:64])
			theirs.Close()
		}()
		go theirs.Read(make([]byte, 64))
		if _, err := Handshake(ours, "PUB"); err == nil {
			t.Errorf("%q was taken for a greeting", greeting)
		}
	}
}
