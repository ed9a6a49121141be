package main

import "strings"

// stopMatcher ends a text at the first stop string, and withholds what could become one.
type stopMatcher struct {
	stops []string
	held  string // the end of the text so far: the beginning of a stop string, perhaps
}

// push takes the next piece of the text and gives what may be sent. If found, the text ends with that.
func (m *stopMatcher) push(text string) (send string, found bool) {
	text = m.held + text
	m.held = ""
	end := -1
	for _, stop := range m.stops {
		if at := strings.Index(text, stop); at >= 0 && (end < 0 || at < end) {
			end = at
		}
	}
	if end >= 0 {
		return text[:end], true
	}
	keep := 0
	for _, stop := range m.stops {
		for n := min(len(stop)-1, len(text)); n > keep; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				keep = n
			}
		}
	}
	m.held = text[len(text)-keep:]
	return text[:len(text)-keep], false
}
