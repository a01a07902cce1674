"""A server on Ray Serve: replicas on several GPUs or machines, behind one address.

Install what it needs: ``pip install -c constraints.txt 'pisco-index[serve]' 'ray[serve]'``. Then, in this folder:

serve run ray_serve:application store=/shared/index checkpoint=/shared/checkpoint replicas=4 gpus=1

Ray Serve distributes requests, starts replicas that die, and scales their number. Each replica has its own decoder,
queue and batch. ``POST /reload`` reaches one replica only: deploy again to let all of them open the latest version.
"""

from typing import Any

from ray import serve

from pisco_index import Index
from pisco_index.configs import ServeConfig
from pisco_index.reader.live.engine import LocalEngine
from pisco_index.reader.live.loop import LiveAnswering
from pisco_index.serving.access import Keys, own_names
from pisco_index.serving.app import make_app
from pisco_index.serving.stores import Stores

# Requests that a replica takes at once; the others wait in Ray Serve.
REQUESTS = 64


def application(args: dict[str, Any]) -> serve.Application:
    """Return the application, for ``serve run`` with arguments: store, checkpoint, replicas, gpus, dtype, keys."""

    def app() -> Any:
        """Open the store, load the decoder and begin to answer, in a replica."""
        index = Index(args["store"], args["checkpoint"], dtype=args.get("dtype", "bfloat16"))
        live = LiveAnswering(LocalEngine(index.decoder))
        # It ends with the replica, which Ray Serve stops when its requests are answered.
        live.__enter__()
        # Ray Serve listens on this machine only by default. For another address, give a file of keys.
        keys = Keys.read(args["keys"]) if "keys" in args else Keys()
        names = () if keys else own_names("127.0.0.1")
        return make_app(Stores({"index": index}), live, ServeConfig(), keys, names=names)

    @serve.deployment(
        name="pisco-index",
        num_replicas=int(args.get("replicas", 1)),
        ray_actor_options={"num_gpus": float(args.get("gpus", 0))},
        max_ongoing_requests=REQUESTS,
    )
    @serve.ingress(app)
    class Server:
        pass

    return Server.bind()
