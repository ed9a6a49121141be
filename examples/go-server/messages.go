package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// parseMessages checks the messages of a chat, and returns the chat template's input: role, content as one string, and
// name (if present) of each message. It also returns the total size of the contents in bytes.
func parseMessages(raw json.RawMessage) (messages json.RawMessage, bytes int, err error) {
	var all []json.RawMessage
	if json.Unmarshal(raw, &all) != nil || len(all) == 0 || len(all) > maxMessages {
		return nil, 0, invalid("messages", "messages must be an array of 1 to %d messages", maxMessages)
	}
	parts := 0
	out := make([]map[string]string, len(all))
	for i, one := range all {
		path := fmt.Sprintf("messages[%d].", i)
		message, ok := decodeObject(one)
		if !ok {
			return nil, 0, invalid("messages", "messages[%d] must be an object", i)
		}
		rules := []rule{{"role", text, 0, 0}, {"content", anything, 0, 0}, {"name", text, 0, 0}}
		if err := message.check(path, rules, nil); err != nil {
			return nil, 0, err
		}
		out[i] = map[string]string{"role": get(message, "role", "")}
		if out[i]["role"] == "" || message["content"] == nil {
			return nil, 0, invalid("messages", "messages[%d] must have a role and a content", i)
		}
		if name := get(message, "name", ""); name != "" {
			out[i]["name"] = name
		}
		content, n, err := parseContent(message["content"], path+"content")
		if err != nil {
			return nil, 0, err
		}
		if parts += n; parts > maxParts {
			return nil, 0, invalid("messages", "messages must have at most %d content parts", maxParts)
		}
		out[i]["content"] = content
		bytes += len(content)
	}
	return encode(out), bytes, nil
}

// parseContent joins the text parts of a message, and counts them. `path` is its position in the body.
func parseContent(raw json.RawMessage, path string) (content string, parts int, err error) {
	if raw[0] == '"' {
		return content, 0, json.Unmarshal(raw, &content)
	}
	var all []json.RawMessage
	if json.Unmarshal(raw, &all) != nil || len(all) == 0 {
		return "", 0, invalid("messages", "%s must be a string or an array of text parts", path)
	}
	if len(all) > maxParts {
		return "", len(all), nil // the caller refuses it
	}
	var whole strings.Builder
	for i, one := range all {
		part, ok := decodeObject(one)
		if !ok || get(part, "type", "") != "text" {
			return "", 0, invalid("messages", "%s[%d] must be of type text: other parts are not supported", path, i)
		}
		rules := []rule{{"type", text, 0, 0}, {"text", text, 0, 0}}
		if err := part.check(fmt.Sprintf("%s[%d].", path, i), rules, nil); err != nil {
			return "", 0, err
		}
		if part["text"] == nil {
			return "", 0, invalid("messages", "%s[%d] must have a text", path, i)
		}
		whole.WriteString(get(part, "text", ""))
	}
	return whole.String(), len(all), nil
}
