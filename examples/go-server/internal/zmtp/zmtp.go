// Package zmtp is the part of ZeroMQ's wire protocol (ZMTP 3.0, mechanism NULL) that a publisher needs: connections that
// peers with SUB, DEALER and REQ sockets open. What a peer sends is bounded.
package zmtp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	more    = 1 << 0
	long    = 1 << 1
	command = 1 << 2

	mostFrame  = 64 << 10 // bytes that a peer may send in a frame
	mostFrames = 16       // and frames in a message

	handshakeTimeout = 10 * time.Second
	writeTimeout     = 30 * time.Second // for a peer that does not read
)

// Conn is a connection after the handshake. One goroutine may read while others write.
type Conn struct {
	net.Conn
	reader *bufio.Reader

	mu     sync.Mutex
	writer *bufio.Writer
}

// Handshake makes the handshake for a socket of this type ("PUB", "ROUTER").
func Handshake(conn net.Conn, socketType string) (*Conn, error) {
	c := &Conn{Conn: conn, reader: bufio.NewReader(conn), writer: bufio.NewWriter(conn)}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	defer conn.SetDeadline(time.Time{})
	greeting := make([]byte, 64)
	copy(greeting, "\xff\x00\x00\x00\x00\x00\x00\x00\x00\x7f\x03\x00NULL")
	if _, err := conn.Write(greeting); err != nil {
		return nil, err
	}
	theirs := make([]byte, 64)
	if _, err := io.ReadFull(c.reader, theirs); err != nil {
		return nil, err
	}
	if theirs[0] != 0xff || theirs[9]&1 == 0 || theirs[10] < 3 || string(theirs[12:17]) != "NULL\x00" {
		return nil, errors.New("the peer does not speak ZMTP 3 without security")
	}
	ready := []byte("\x05READY\x0bSocket-Type")
	ready = binary.BigEndian.AppendUint32(ready, uint32(len(socketType)))
	ready = append(ready, socketType...)
	ready = append(ready, "\x08Identity\x00\x00\x00\x00"...)
	if err := c.frame(ready, command); err != nil {
		return nil, err
	}
	if err := c.writer.Flush(); err != nil {
		return nil, err
	}
	flags, body, err := c.readFrame()
	if err != nil {
		return nil, err
	}
	if flags&command == 0 || len(body) < 6 || string(body[:6]) != "\x05READY" {
		return nil, fmt.Errorf("the peer did not answer the handshake: %q", body)
	}
	return c, nil
}

// Read returns the frames of the next message. A subscription of ZMTP 3.1, which is a command, looks like one of 3.0: a byte 1
// (or 0 to end it), and the topic.
func (c *Conn) Read() (message [][]byte, err error) {
	for {
		flags, body, err := c.readFrame()
		if err != nil {
			return nil, err
		}
		if flags&command != 0 {
			name, rest := split(body)
			switch name {
			case "SUBSCRIBE":
				return [][]byte{append([]byte{1}, rest...)}, nil
			case "CANCEL":
				return [][]byte{append([]byte{0}, rest...)}, nil
			case "PING": // a lifetime of two bytes, and what the answer repeats
				if err := c.write(command, append([]byte("\x04PONG"), rest[min(2, len(rest)):]...)); err != nil {
					return nil, err
				}
			}
			continue
		}
		if message = append(message, body); flags&more == 0 {
			return message, nil
		}
		if len(message) == mostFrames {
			return nil, fmt.Errorf("a message of more than %d frames", mostFrames)
		}
	}
}

// split takes a command apart into its name and its data.
func split(body []byte) (name string, rest []byte) {
	if len(body) == 0 || len(body) < 1+int(body[0]) {
		return "", nil
	}
	return string(body[1 : 1+body[0]]), body[1+body[0]:]
}

func (c *Conn) readFrame() (flags byte, body []byte, err error) {
	if flags, err = c.reader.ReadByte(); err != nil {
		return 0, nil, err
	}
	var size [8]byte
	if flags&long != 0 {
		_, err = io.ReadFull(c.reader, size[:])
	} else {
		size[7], err = c.reader.ReadByte()
	}
	if err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint64(size[:])
	if n > mostFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c.reader, body)
	return flags, body, err
}

// Write sends a message.
func (c *Conn) Write(message ...[]byte) error { return c.write(0, message...) }

func (c *Conn) write(flags byte, message ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	for i, body := range message {
		following := byte(0)
		if i < len(message)-1 {
			following = more
		}
		if err := c.frame(body, flags|following); err != nil {
			return err
		}
	}
	return c.writer.Flush()
}

func (c *Conn) frame(body []byte, flags byte) error {
	head := []byte{flags, byte(len(body))}
	if len(body) > 255 {
		head = binary.BigEndian.AppendUint64([]byte{flags | long}, uint64(len(body)))
	}
	if _, err := c.writer.Write(head); err != nil {
		return err
	}
	_, err := c.writer.Write(body)
	return err
}
