// Package cleave is disaggregated LLM inference as a library: the Go side of libcleave.
package cleave
