package core

import (
	"context"
	"fmt"
	"time"

	cleave "cleave/go"
)

// Roles are the roles of an engine, by the names that options and messages have for them.
var Roles = map[string]cleave.Role{"mixed": cleave.RoleMixed, "prefill": cleave.RolePrefill, "decode": cleave.RoleDecode}

// RoleName returns the name of a role.
func RoleName(role cleave.Role) string {
	for name, named := range Roles {
		if named == role {
			return name
		}
	}
	return fmt.Sprint(uint32(role))
}

// Role returns the name of the role that was set last.
func (h *Host) Role() string { return RoleName(cleave.Role(h.role.Load())) }

// SetRole switches the engine's role at a step boundary, and returns once it is in effect. The load that it returns is the
// proof: since when, and what was open then.
func (h *Host) SetRole(ctx context.Context, role cleave.Role) (cleave.EngineLoad, error) {
	h.switching.Lock()
	defer h.switching.Unlock()
	if err := h.Engine.SetRole(role); err != nil {
		return cleave.EngineLoad{}, err
	}
	h.role.Store(uint32(role))
	for {
		load, err := h.Engine.Load()
		if err != nil || load.Role == role {
			return load, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return load, context.Cause(ctx)
		}
	}
}
