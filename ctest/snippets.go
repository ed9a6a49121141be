// Declarations for the Go snippets in the documents: variables and functions that a server has anyway.
package main

import (
	"context"

	cleave "cleave/go"
)

var (
	ctx   context.Context
	cache *cleave.Cache
)

func main() { _ = snippet() }
