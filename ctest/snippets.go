// Declarations for the Go snippets in the documents: variables and functions that a server has anyway.
package main

import "context"

var ctx context.Context

func main() { _ = snippet() }
