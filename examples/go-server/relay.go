package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"
)

var (
	errGone  = errors.New("the worker is gone") // in the middle of a request: another one may go on
	errEnded = errors.New("the stream has ended as it should")
)

// readEvents gives every server-sent event that has come whole: its name, its data, and the bytes that it is made of.
func readEvents(r io.Reader, each func(name string, data, event []byte) error) error {
	lines := bufio.NewReader(r)
	var name string
	var data, event []byte
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		event = append(event, line...)
		line = bytes.TrimRight(line, "\r\n")
		if value, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			data = append(data, bytes.TrimPrefix(value, []byte(" "))...)
		} else if value, ok := bytes.CutPrefix(line, []byte("event:")); ok {
			name = string(bytes.TrimSpace(value))
		} else if len(line) == 0 {
			if err := each(name, data, event); err != nil {
				return err
			}
			name, data, event = "", nil, nil
		}
	}
}

// relay passes a worker's stream on, and counts the chunks of each choice in `sent`, for another worker to go on from
// there. The worker's trace events are taken into the front's time: `ahead` is when the worker got the request. Before
// the last event it calls `last`. errGone if the stream broke off, or the worker gives up because it is ending.
func relay(a *reply, stream io.Reader, sent []int, ahead time.Duration, last func()) error {
	err := readEvents(stream, func(name string, data, event []byte) error {
		var chunk struct {
			Choices []struct {
				Index int
				Text  string
				Delta struct{ Content string }
			}
			Error *struct{ Type string }
		}
		switch {
		case name == "trace":
			relayTrace(a, data, ahead, last)
			return nil
		case string(data) == "[DONE]":
			last()
			a.end(event)
			return errEnded
		case json.Unmarshal(data, &chunk) != nil:
			return errGone
		case chunk.Error != nil && chunk.Error.Type == "service_unavailable":
			return errGone
		case chunk.Error != nil:
			a.end(event)
			return errEnded
		}
		a.event(event)
		for _, c := range chunk.Choices {
			if c.Index >= 0 && c.Index < len(sent) {
				sent[c.Index]++
			}
			if c.Text+c.Delta.Content != "" {
				a.firstToken()
			}
		}
		return nil
	})
	if err == errEnded {
		return nil
	}
	return errGone
}

func relayTrace(a *reply, data []byte, ahead time.Duration, last func()) {
	var fields map[string]any
	json.Unmarshal(data, &fields)
	phase, _ := fields["phase"].(string)
	ms, _ := fields["ms"].(float64)
	if phase == "done" {
		last()
	}
	delete(fields, "phase")
	delete(fields, "ms")
	a.traceAt(phase, ms+milliseconds(ahead), fields)
}
