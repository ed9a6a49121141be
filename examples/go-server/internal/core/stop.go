package core

import "strings"

// stopMatcher ends a text at the first stop string, and holds back text that could become one.
type stopMatcher struct {
	stops []string
	keep  bool   // the stop string is part of the text
	held  string // end of the text so far, which may begin a stop string
	found string // the stop string that ended the text
}

// push takes the next piece of the text and returns the part that may be sent. Once a stop string is found, the text
// ends there.
func (m *stopMatcher) push(text string) string {
	text = m.held + text
	m.held = ""
	end, held := len(text), 0
	for _, stop := range m.stops {
		if at := strings.Index(text, stop); at >= 0 && (m.found == "" || at < end) {
			m.found = stop
			end = at
		}
		for n := min(len(stop)-1, len(text)); n > held; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				held = n
			}
		}
	}
	switch {
	case m.found == "":
		end = len(text) - held
		m.held = text[end:]
	case m.keep:
		end += len(m.found)
	}
	return text[:end]
}
