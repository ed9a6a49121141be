package core

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"sync"
)

// mostSalts is how many texts of salts are remembered.
const mostSalts = 10000

// Salts turns texts into cache salts, and back for those who publish what is cached. The zero value is ready for use.
type Salts struct {
	mu    sync.Mutex
	texts map[uint64]string
}

// Salt separates the prefixes of a request in the cache from those of requests with other texts. With `bypass` it
// separates them from those of all others.
func (s *Salts) Salt(text string, bypass bool) uint64 {
	if bypass {
		return rand.Uint64() | 1
	}
	if text == "" {
		return 0
	}
	digest := sha256.Sum256([]byte(text))
	salt := binary.LittleEndian.Uint64(digest[:]) | 1
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.texts == nil {
		s.texts = make(map[uint64]string)
	}
	for other := range s.texts {
		if len(s.texts) < mostSalts {
			break
		}
		delete(s.texts, other)
	}
	s.texts[salt] = text
	return salt
}

// Text returns the text of a salt, or nothing if it is not known.
func (s *Salts) Text(salt uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.texts[salt]
}
