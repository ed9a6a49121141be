// What stands around the pieces of Go in the documents: what a server has anyway.
package main

import (
	"context"

	"cleave/go"
)

var (
	ctx     context.Context
	model   *cleave.Model
	cache   *cleave.Cache
	prefill *cleave.Engine
	decode  *cleave.Engine
	prompt  []int32
	ticket  []byte
)

func main() { _ = snippet() }
