"""What is compared: each stands between the load and one upstream, on one thread."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import machine


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, holds, seconds=30):
    """Waits until `holds()`; a failure names `what`."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def listens(port, host="127.0.0.1"):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((host, port)) == 0


class Subject:
    """A process between load and upstream. `start` returns when both ports answer."""

    name = "direct"
    patience = 30
    # Where the upstream is, in order of preference; all on the same ports.
    hosts = ("127.0.0.1",)

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = None

    def missing(self):
        """Why it cannot be run here, or None."""
        return None

    def version(self):
        return ""

    def start(self, http, grpc):
        self.http, self.grpc = http, grpc

    def launch(self, command, env=None):
        log = open(self.folder / f"{self.name}.log", "ab")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(env or {})}, cwd=self.folder
        )
        self.http, self.grpc = self.ports
        for port in self.ports:
            until(f"{self.name} on {port}", lambda port=port: listens(port), self.patience)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def cpu(self):
        return machine.cpu_seconds(self.process.pid) if self.process else None

    def memory(self):
        return machine.memory(self.process.pid) if self.process else None


def first_line(*command):
    """The first line with words that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    return next((line for line in lines if line), "")


class Shim(Subject):
    name = "agent-shim"

    def __init__(self, folder, binary, **env):
        super().__init__(folder)
        self.binary, self.env = str(binary), env

    def missing(self):
        return None if Path(self.binary).exists() else f"{self.binary} is not built"

    def version(self):
        return first_line(self.binary, "--version")

    def start(self, http, grpc):
        self.ports = (free_port(), free_port())
        self.admin = free_port()
        env = {
            "SHIM_INFERENCE_HOSTS": ",".join(self.hosts),
            "SHIM_INFERENCE_HTTP_PORT": str(http),
            "SHIM_INFERENCE_GRPC_PORT": str(grpc),
            "SHIM_RELAY_HTTP_PORT": str(self.ports[0]),
            "SHIM_RELAY_GRPC_PORT": str(self.ports[1]),
            "SHIM_ADMIN_LISTEN": "127.0.0.1",
            "SHIM_ADMIN_PORT": str(self.admin),
            "SHIM_LOG": "warn",
            "SHIM_DRAIN_TIME": "1s",
            **self.env,
        }
        self.launch([self.binary], env)
        until("the shim is ready", self.ready, self.patience)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=1) as r:
                return r.status == 200
        except OSError:
            return False


class Floor(Subject):
    """Bytes carried by one thread that knows nothing of them: what no process can be below."""

    name = "floor"

    def __init__(self, folder, echo):
        super().__init__(folder)
        self.binary = str(echo)

    def start(self, http, grpc):
        self.ports = (free_port(), free_port())
        pairs = [f"{near}={far}" for near, far in zip(self.ports, (http, grpc))]
        self.launch([self.binary, "relay", *pairs])


class Nginx(Subject):
    name = "nginx"

    def missing(self):
        return None if shutil.which("nginx") else "nginx is not installed"

    def version(self):
        return first_line("nginx", "-v").split()[-1]

    def servers(self, port):
        return "".join(
            f"server {host}:{port} fail_timeout=1s{' backup' if number else ''}; "
            for number, host in enumerate(self.hosts)
        )

    def start(self, http, grpc):
        self.ports = (free_port(), free_port())
        config = self.folder / "nginx.conf"
        config.write_text(f"""
daemon off; worker_processes 1; pid {self.folder}/nginx.pid; error_log {self.folder}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;
  fastcgi_temp_path {self.folder}/f; uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s;
  http2_max_concurrent_streams 1000;
  upstream http_up {{ {self.servers(http)} keepalive 64; keepalive_requests 100000000; }}
  upstream grpc_up {{ {self.servers(grpc)} keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{self.ports[0]}; location / {{
    proxy_pass http://http_up; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_request_buffering off; proxy_buffering off; }} }}
  server {{ listen 127.0.0.1:{self.ports[1]} http2; location / {{ grpc_pass grpc://grpc_up; }} }}
}}
""")
        self.launch(["nginx", "-c", str(config), "-p", str(self.folder)])


class Haproxy(Subject):
    name = "haproxy"

    def missing(self):
        return None if shutil.which("haproxy") else "haproxy is not installed"

    def version(self):
        return first_line("haproxy", "-v").split()[2]

    def servers(self, port, options=""):
        # Checked only where there is another one, as often as the shim does.
        check = "check inter 1s fall 3 rise 1" if self.hosts[1:] else ""
        return "\n".join(
            f"  server s{number} {host}:{port} {options} {check} {'backup' if number else ''}"
            for number, host in enumerate(self.hosts)
        )

    def start(self, http, grpc):
        self.ports = (free_port(), free_port())
        config = self.folder / "haproxy.cfg"
        config.write_text(f"""
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option redispatch 1
frontend http_in
  bind 127.0.0.1:{self.ports[0]}
  default_backend http_up
frontend grpc_in
  bind 127.0.0.1:{self.ports[1]} proto h2
  default_backend grpc_up
backend http_up
  http-reuse always
{self.servers(http)}
backend grpc_up
  http-reuse always
{self.servers(grpc, "proto h2")}
""")
        self.launch(["haproxy", "-db", "-f", str(config)])


class Envoy(Subject):
    name = "envoy"

    def __init__(self, folder, binary):
        super().__init__(folder)
        self.binary = str(binary)

    def missing(self):
        return None if Path(self.binary).exists() else "envoy is not installed"

    def version(self):
        return next((w for w in first_line(self.binary, "--version").split("/") if w[:1].isdigit()), "")

    def start(self, http, grpc):
        self.ports = (free_port(), free_port())

        def listener(name, port, cluster):
            return f"""
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: {cluster}, timeout: 0s{retry}}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""

        # Another host is of a lower priority; a refused connection is tried again on it.
        def endpoints(port):
            return "".join(
                f"""
      - priority: {number}
        lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]"""
                for number, host in enumerate(self.hosts)
            )

        several = bool(self.hosts[1:])
        retry = """, retry_policy: {retry_on: "connect-failure,refused-stream", num_retries: 2, retry_priority: {name: previous, typed_config: {
                "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}}""" if several else ""
        check = """
    health_checks:
    - {timeout: 0.5s, interval: 1s, no_traffic_interval: 1s, unhealthy_threshold: 3, healthy_threshold: 1, tcp_health_check: {}}""" if several else ""

        def cluster(name, port, options=""):
            return f"""
  - name: {name}
    type: STATIC
    connect_timeout: 5s{check}
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_requests: 100000, max_pending_requests: 100000}}]}}
    load_assignment:
      cluster_name: {name}
      endpoints:{endpoints(port)}
{options}"""

        h2 = """    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
"""
        config = self.folder / "envoy.yaml"
        config.write_text(
            "static_resources:\n  listeners:"
            + listener("http_in", self.ports[0], "http_up")
            + listener("grpc_in", self.ports[1], "grpc_up")
            + "  clusters:"
            + cluster("http_up", http)
            + cluster("grpc_up", grpc, h2)
        )
        self.launch(
            [self.binary, "-c", str(config), "--concurrency", "1", "--log-level", "error",
             "--disable-hot-restart"]
        )  # fmt: skip
