package cleave

import (
	"log/slog"

	"cleave/go/internal/capi"
)

// LogLevel selects how much the library logs. It is a [slog.Leveler].
type LogLevel int32

// Log levels. Each includes the levels above it.
const (
	// LogOff: no messages.
	LogOff LogLevel = iota
	// LogError: an engine or a transfer has failed, or a panic was caught.
	LogError
	// LogWarn: something that deserves attention.
	LogWarn
	// LogInfo: once per object, such as a model loaded, or an engine created or destroyed.
	LogInfo
	// LogDebug: once per request or failed call.
	LogDebug
	// LogTrace: once per step.
	LogTrace
)

// Level returns the corresponding level of log/slog: error, warn, info, debug, and one below debug for LogTrace.
func (l LogLevel) Level() slog.Level {
	return slog.LevelError - 4*slog.Level(l-LogError)
}

// SetLog sends messages of level and of more severe levels to sink; a nil sink or [LogOff] turns the log off. There is one
// sink per process. Before SetLog returns, the previous sink gets the messages queued for it; it is never called
// afterwards. Without a sink the library writes nothing anywhere.
//
// The argument target names a part of the library; message is one line. One thread of the library calls the sink, never
// twice at once. The sink must return and must not panic. It may call everything except SetLog, which returns
// [ErrInvalidArgument]. A sink that is too slow loses messages and is told how many; it never slows the library down.
// For log/slog:
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
