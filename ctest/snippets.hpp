// What stands around the C++ of the documents, as snippets.h does for C.
#include <cleave/cleave.hpp>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

extern const std::string path;
extern cleave::Model *model;
extern cleave::Cache *cache;
extern cleave::Queue *queue;
extern cleave::Engine *prefill, *decode;
extern std::vector<cleave::Request> requests;
extern cleave::Request ask;

void use(int token);
void log_line(const char *format, ...);
void retry_later(cleave::Request request);
void prefill_elsewhere(cleave::Request request);
