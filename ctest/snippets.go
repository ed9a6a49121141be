// What stands around the pieces of Go in the documents: what a server has anyway.
package main

import "context"

var ctx context.Context

func main() { _ = snippet() }
