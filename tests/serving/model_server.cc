// What a model server does with an export, without Python: loads it, replays its warm-up requests,
// and joins two requests of each signature as dynamic batching does.
//
//     model_server EXPORT/VERSION
//
// Prints one line for each warm-up request: its signature, what came of it ("answered", or the
// error), and what came of two joined requests ("alike": both got the answers that they get alone;
// "mixed": they got others; "refused", and why). The exit status is 1 if nothing could be replayed.

#include <cmath>
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "google/protobuf/io/coded_stream.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_util.h"
#include "tensorflow/core/lib/io/record_reader.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/public/session.h"

using tensorflow::Tensor;
using Tensors = std::map<std::string, Tensor>;  // by the names of a signature

// A request of the PredictionService: the signature and its inputs.
struct Request {
  std::string signature = "serving_default";
  Tensors inputs;
};

// -- the warm-up file: records of tensorflow.serving.PredictionLog ------------------------------

// Calls `visit` with the number and the bytes of every field of a message whose fields all have
// lengths, as those that matter here have; other fields are skipped.
void ForEachField(const std::string& message,
                  const std::function<void(int, const std::string&)>& visit) {
  google::protobuf::io::CodedInputStream stream(
      reinterpret_cast<const uint8_t*>(message.data()), static_cast<int>(message.size()));
  while (uint32_t tag = stream.ReadTag()) {
    uint64_t number = 0;
    switch (tag & 7) {
      case 0: stream.ReadVarint64(&number); break;
      case 1: stream.Skip(8); break;
      case 5: stream.Skip(4); break;
      case 2: {
        std::string bytes;
        stream.ReadVarint64(&number);
        stream.ReadString(&bytes, static_cast<int>(number));
        visit(static_cast<int>(tag >> 3), bytes);
        break;
      }
      default: return;
    }
  }
}

std::string Field(const std::string& message, int wanted) {
  std::string found;
  ForEachField(message, [&](int field, const std::string& bytes) {
    if (field == wanted) found = bytes;
  });
  return found;
}

// PredictionLog.predict_log = 6, PredictLog.request = 1; PredictRequest.model_spec = 1 with
// signature_name = 3, and PredictRequest.inputs = 2, a map (key 1, value 2).
Request ParsePredictionLog(const std::string& record) {
  Request request;
  ForEachField(Field(Field(record, 6), 1), [&](int field, const std::string& bytes) {
    if (field == 1 && !Field(bytes, 3).empty()) request.signature = Field(bytes, 3);
    if (field != 2) return;
    tensorflow::TensorProto proto;
    Tensor tensor;
    if (proto.ParseFromString(Field(bytes, 2)) && tensor.FromProto(proto))
      request.inputs[Field(bytes, 1)] = tensor;
  });
  return request;
}

std::vector<Request> ReadWarmUp(const std::string& path) {
  std::vector<Request> requests;
  std::unique_ptr<tensorflow::RandomAccessFile> file;
  if (!tensorflow::Env::Default()->NewRandomAccessFile(path, &file).ok()) return requests;
  tensorflow::io::RecordReader reader(file.get());
  uint64_t offset = 0;
  tensorflow::tstring record;
  while (reader.ReadRecord(&offset, &record).ok())
    requests.push_back(ParsePredictionLog(std::string(record)));
  return requests;
}

// -- requests ------------------------------------------------------------------------------------

absl::StatusOr<Tensors> Run(const tensorflow::SavedModelBundle& bundle, const Request& request) {
  const auto& signatures = bundle.meta_graph_def.signature_def();
  const auto signature = signatures.find(request.signature);
  if (signature == signatures.end())
    return absl::NotFoundError("no signature " + request.signature);
  std::vector<std::pair<std::string, Tensor>> feeds;
  for (const auto& [name, tensor] : request.inputs) {
    const auto info = signature->second.inputs().find(name);
    if (info == signature->second.inputs().end()) return absl::NotFoundError("no input " + name);
    feeds.emplace_back(info->second.name(), tensor);
  }
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature->second.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<Tensor> outputs;
  auto status = bundle.session->Run(feeds, fetches, {}, &outputs);
  if (!status.ok()) return status;
  Tensors answer;
  for (size_t i = 0; i < names.size(); ++i) answer[names[i]] = outputs[i];
  return answer;
}

// The same request from another caller: the numbers are halved, so that its answers differ.
Request AnotherCaller(Request request) {
  for (auto& [name, tensor] : request.inputs) {
    if (tensor.dtype() != tensorflow::DT_FLOAT || name.find("weight") != std::string::npos)
      continue;
    Tensor halved = tensorflow::tensor::DeepCopy(tensor);
    for (int64_t i = 0; i < halved.NumElements(); ++i) halved.flat<float>()(i) *= 0.5f;
    tensor = halved;
  }
  return request;
}

// As tensorflow_serving/batching: all inputs of a request must have one first dimension, ...
absl::StatusOr<Request> Join(const Request& one, const Request& other, int64_t* rows) {
  Request joined{one.signature, {}};
  *rows = -1;
  for (const auto& [name, tensor] : one.inputs) {
    if (tensor.dims() == 0) return absl::InvalidArgumentError("input " + name + " is a scalar");
    if (*rows >= 0 && tensor.dim_size(0) != *rows)
      return absl::InvalidArgumentError("inputs differ in their first dimension");
    *rows = tensor.dim_size(0);
    Tensor both;
    auto status = tensorflow::tensor::Concat({tensor, other.inputs.at(name)}, &both);
    if (!status.ok()) return status;
    joined.inputs[name] = both;
  }
  return joined;
}

// ... and all outputs that of the joined inputs.
absl::Status Split(const Tensors& answer, int64_t rows, Tensors* one, Tensors* other) {
  for (const auto& [name, tensor] : answer) {
    if (tensor.dims() == 0 || tensor.dim_size(0) != 2 * rows)
      return absl::FailedPreconditionError("output " + name + " cannot be divided");
    std::vector<Tensor> parts;
    auto status = tensorflow::tensor::Split(tensor, {rows, rows}, &parts);
    if (!status.ok()) return status;
    (*one)[name] = parts[0];
    (*other)[name] = parts[1];
  }
  return absl::OkStatus();
}

bool Finite(const Tensors& answer) {
  for (const auto& [name, tensor] : answer) {
    if (tensor.dtype() != tensorflow::DT_FLOAT) continue;
    for (int64_t i = 0; i < tensor.NumElements(); ++i)
      if (!std::isfinite(tensor.flat<float>()(i))) return false;
  }
  return true;
}

// Batches of other sizes are added up in other orders, hence the tolerance.
bool Alike(const Tensors& left, const Tensors& right) {
  for (const auto& [name, tensor] : left) {
    const Tensor& other = right.at(name);
    if (tensor.shape() != other.shape()) return false;
    if (tensor.dtype() != tensorflow::DT_FLOAT) {
      // Other types are counts and messages, which are the same if they are written the same.
      if (tensor.SummarizeValue(1000) != other.SummarizeValue(1000)) return false;
      continue;
    }
    for (int64_t i = 0; i < tensor.NumElements(); ++i) {
      const float a = tensor.flat<float>()(i), b = other.flat<float>()(i);
      if (!(std::abs(a - b) <= 1e-4f * (1 + std::abs(b)))) return false;
    }
  }
  return true;
}

std::string WhatComesOfJoining(const tensorflow::SavedModelBundle& bundle, const Request& one) {
  const Request other = AnotherCaller(one);
  int64_t rows = 0;
  auto joined = Join(one, other, &rows);
  if (!joined.ok()) return "refused " + std::string(joined.status().message());
  auto answer = Run(bundle, *joined);
  if (!answer.ok()) return "refused " + std::string(answer.status().message());
  Tensors first, second;
  auto divided = Split(*answer, rows, &first, &second);
  if (!divided.ok()) return "refused " + std::string(divided.message());
  auto first_alone = Run(bundle, one), second_alone = Run(bundle, other);
  if (!first_alone.ok() || !second_alone.ok()) return "one of them fails alone";
  if (Alike(*first_alone, *second_alone)) return "the two callers cannot be told apart";
  return Alike(first, *first_alone) && Alike(second, *second_alone) ? "alike" : "mixed";
}

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "Usage: model_server EXPORT/VERSION\n";
    return 2;
  }
  const std::string path = arguments[1];
  tensorflow::SavedModelBundle bundle;
  auto status = tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(),
                                           path, {"serve"}, &bundle);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  const auto requests = ReadWarmUp(path + "/assets.extra/tf_serving_warmup_requests");
  for (const Request& request : requests) {
    auto answer = Run(bundle, request);
    const bool good = answer.ok() && Finite(*answer);
    std::cout << request.signature << "\t"
              << (good ? "answered" : answer.ok() ? "not finite" : answer.status().ToString())
              << "\t" << WhatComesOfJoining(bundle, request) << "\n";
  }
  return requests.empty() ? 1 : 0;
}
