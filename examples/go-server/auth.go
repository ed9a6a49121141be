package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// signatureWindow is the largest age of a signed request. It allows for clocks that differ.
const signatureWindow = 30 * time.Second

// authenticator signs and checks requests between a front and its workers, with a key that is derived from the cache's
// secret. See "Workers" in ../README.md.
type authenticator struct {
	key  []byte
	mu   sync.Mutex
	seen map[string]time.Time // nonces of requests in the window, and their signing times
	next time.Time            // when to remove old nonces
}

func newAuthenticator(secret []byte) *authenticator {
	key := sum(secret, "cleave requests between front and workers, version 1")
	return &authenticator{key: key, seen: make(map[string]time.Time)}
}

// readSecret reads the first 32 bytes of a file.
func readSecret(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	secret := make([]byte, 32)
	if _, err := io.ReadFull(file, secret); err != nil {
		return nil, fmt.Errorf("%s: cannot read a secret of 32 bytes from it", path)
	}
	return secret, nil
}

func sum(key []byte, message string) []byte {
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, message)
	return mac.Sum(nil)
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

func (a *authenticator) mac(audience, path, at, nonce, digest string) string {
	return hex.EncodeToString(sum(a.key, strings.Join([]string{audience, path, at, nonce, digest}, "\n")))
}

// sign adds the header Authorization to a POST for `audience`: a worker's URL, or "front".
func (a *authenticator) sign(r *http.Request, audience string, body []byte) {
	random := make([]byte, 16)
	rand.Read(random)
	at, nonce, digest := strconv.FormatInt(time.Now().UnixMilli(), 10), hex.EncodeToString(random), digest(body)
	r.Header.Set("Authorization", fmt.Sprintf("Cleave %s %s %s %s", at, nonce, digest, a.mac(audience, r.URL.Path, at, nonce, digest)))
}

// check checks the head of a request for `audience`, and returns the digest that the body must have.
func (a *authenticator) check(r *http.Request, audience string) (digest string, err error) {
	part := append(strings.Fields(r.Header.Get("Authorization")), "", "", "", "", "")
	at, nonce, digest := part[1], part[2], part[3]
	right := a.mac(audience, r.URL.Path, at, nonce, digest)
	if part[0] != "Cleave" || !hmac.Equal([]byte(part[4]), []byte(right)) || part[5] != "" {
		return "", unauthorized("this path is for a front and its workers: the request is not signed with their secret")
	}
	ms, _ := strconv.ParseInt(at, 10, 64) // the signature is valid, so the time is well-formed
	now, signed := time.Now(), time.UnixMilli(ms)
	if now.Sub(signed).Abs() > signatureWindow {
		return "", unauthorized("the request was signed more than 30 s ago, or by a clock that differs by as much")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.After(a.next) {
		a.next = now.Add(signatureWindow / 10)
		for nonce, signed := range a.seen {
			if now.Sub(signed) > signatureWindow {
				delete(a.seen, nonce)
			}
		}
	}
	if _, there := a.seen[nonce]; there {
		return "", unauthorized("the request was here before")
	}
	a.seen[nonce] = signed
	return digest, nil
}

func unauthorized(why string) *apiError {
	return &apiError{status: http.StatusUnauthorized, Message: why, Type: "authentication_error"}
}
