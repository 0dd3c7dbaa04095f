"""NeMo-Gym's own client and models on a service: run by a Python that has nemo-gym.

python nemo_gym_client.py HOST PORT ROW     ROW: JSON, a rollout as an agent verifies it; writes what came as JSON
"""

import asyncio
import json
import sys

from aiohttp import ClientResponseError
from nemo_gym import server_utils
from nemo_gym.base_resources_server import (
    BaseVerifyRequest,
    BaseVerifyResponse,
    ResourcesCloseSessionRequest,
    ResourcesCloseSessionResponse,
    ResourcesSeedSessionRequest,
    ResourcesSeedSessionResponse,
    ReverifyMode,
)
from nemo_gym.config_types import AggregateMetrics, AggregateMetricsRequest
from nemo_gym.episode_types import EpisodeId, TaskId
from nemo_gym.reward_profile import compute_aggregate_metrics
from nemo_gym.server_utils import BaseServerConfig, GlobalAIOHTTPAsyncClientConfig, ServerClient
from omegaconf import OmegaConf

NAME = "plaudit"
SESSION = "session-1"


async def ask(client, path, body=None):
    sent = client.get(NAME, path) if body is None else client.post(NAME, path, json=body)
    answer = await sent
    await server_utils.raise_for_status(answer)
    return await server_utils.get_response_json(answer)


async def drive(client, row):
    server_utils.set_global_aiohttp_client(GlobalAIOHTTPAsyncClientConfig())
    episode, task = EpisodeId(rollout_id="rollout-1"), TaskId(taskset="set", task_id="task-1")
    seed = ResourcesSeedSessionRequest(resources_session_id=SESSION, episode_id=episode, task_id=task, task_data={})
    close = ResourcesCloseSessionRequest(resources_session_id=SESSION, episode_id=episode)
    seeded = ResourcesSeedSessionResponse.model_validate(await ask(client, "/seed_session", seed))
    verified = await ask(client, "/verify", row)
    by_model = await ask(client, "/verify", BaseVerifyRequest.model_validate(row))
    closed = ResourcesCloseSessionResponse.model_validate(await ask(client, "/close_session", close))
    rollouts = [
        {**verified, "_ng_task_index": task, "_ng_rollout_index": number, "reward": float(task + number)}
        for task in range(2)
        for number in range(3)
    ]
    request = AggregateMetricsRequest(verify_responses=rollouts)
    aggregated = AggregateMetrics.model_validate(await ask(client, "/aggregate_metrics", request))
    return {
        "legacy_seed": await ask(client, "/seed_session", row),
        "sessions": [seeded.resources_session_id, closed.resources_session_id],
        "verified": verified,
        "reward_of_model": BaseVerifyResponse.model_validate(by_model).reward,
        "mode": ReverifyMode(await ask(client, "/reverify_mode")).value,
        "aggregated": aggregated.agent_metrics,
        "own_aggregated": compute_aggregate_metrics(rollouts).agent_metrics,
        "failed": await status_of_failure(client, row),
    }


async def status_of_failure(client, row):
    """What NeMo-Gym raises for a rollout without a score."""
    broken = json.loads(json.dumps(row))
    broken["response"]["output"][0]["content"][0]["text"] = "infinite"
    try:
        await ask(client, "/verify", broken)
    except ClientResponseError as error:
        return error.status
    return None


def main(host, port, row):
    server = {"entrypoint": "app.py", "domain": "rlhf", "host": host, "port": int(port)}
    config = OmegaConf.create({NAME: {"resources_servers": {NAME: server}}})
    client = ServerClient(head_server_config=BaseServerConfig(host=host, port=int(port)), global_config_dict=config)
    json.dump(asyncio.run(drive(client, json.loads(row))), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
