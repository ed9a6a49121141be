// Package core runs requests on cleave, whatever protocol they came by: it turns tokens into text, applies stop strings,
// hands prompts over between processes, and knows which requests run. It knows nothing of HTTP and gRPC.
package core
