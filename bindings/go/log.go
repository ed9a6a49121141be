package cleave

import (
	"log/slog"

	"cleave/go/internal/capi"
)

// LogLevel is how much the library says. It is a [slog.Leveler].
type LogLevel int32

// Levels of the log, each with all that is above it.
const (
	// LogOff: nothing.
	LogOff LogLevel = iota
	// LogError: an engine or a transfer has failed, a panic was caught.
	LogError
	// LogWarn: something that is worth a look.
	LogWarn
	// LogInfo: once per object: models loaded, engines created and destroyed.
	LogInfo
	// LogDebug: once per request or failed call.
	LogDebug
	// LogTrace: once per step.
	LogTrace
)

// Level returns the level of log/slog: error, warn, info, debug, and for LogTrace one below debug.
func (l LogLevel) Level() slog.Level {
	return slog.LevelError - 4*slog.Level(l-LogError)
}

// SetLog sends messages of level and below to sink; nil or [LogOff] turns the log off. There is one sink per process,
// and this replaces it: the old one gets what was queued for it before SetLog returns, and is never called afterwards.
// Without a sink the library writes nothing anywhere.
//
// target names a part of the library, message is one line. The sink is called from one thread of the library's, never
// twice at once. It must return and not panic, and may call everything but SetLog ([ErrInvalidArgument]). A sink that
// is too slow loses messages and is told how many; it slows nothing down. For log/slog:
//
//	cleave.SetLog(cleave.LogInfo, func(level cleave.LogLevel, target, message string) {
//		logger.Log(context.Background(), level.Level(), message, "target", target)
//	})
func SetLog(level LogLevel, sink func(level LogLevel, target, message string)) error {
	if sink == nil {
		return wrap(capi.LogSet(int32(LogOff), nil))
	}
	return wrap(capi.LogSet(int32(level), func(level int32, target, message string) {
		sink(LogLevel(level), target, message)
	}))
}
