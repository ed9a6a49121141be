// cleave.hpp: the C++ wrapper of cleave.h. Header only, C++17, with or without exceptions and RTTI.
// SPDX-License-Identifier: Apache-2.0
//
// Conventions of the wrapper, in addition to API CONVENTIONS in cleave.h:
//
// Errors. Whatever can fail returns Result<T>; nothing throws. With CLEAVE_EXCEPTIONS defined there is also
// Result<T>::or_throw(). Where a container is filled, an allocation that fails ends as it does everywhere in C++.
//
// Ownership. Model, Cache, Queue, Engine, Detokenizer, Kv and LogSink own one object of the library's each: they can be
// moved, not copied, and give it back when they end. get() is the C object, take() gives ownership up, adopt() takes it,
// reset() gives the object back at once. They may end in any order.
//
// Threads. Methods of one object may be called by any number of threads at once, reset() among them: a call that is
// under way ends normally or with Shutdown, a later one gets InvalidArgument. As with any C++ object, moving and
// destroying need the object to themselves. Kv, Request and Packer are for one thread at a time.
//
// Structs. Config structs (CacheConfig, EngineConfig, Request) have typed fields, of which all have a default. Info
// structs (ModelInfo, Metrics, ...) have the fields of the C struct for what is a number, and methods for what is text,
// a time or an enumeration.
#ifndef CLEAVE_CLEAVE_HPP
#define CLEAVE_CLEAVE_HPP

#include "cache.hpp"
#include "cache_event.hpp"
#include "detokenizer.hpp"
#include "device.hpp"
#include "engine.hpp"
#include "enums.hpp"
#include "event.hpp"
#include "insight.hpp"
#include "kv.hpp"
#include "log.hpp"
#include "model.hpp"
#include "owner.hpp"
#include "queue.hpp"
#include "request.hpp"
#include "result.hpp"
#include "span.hpp"
#include "status.hpp"
#include "sync.hpp"
#include "version.hpp"

#endif
