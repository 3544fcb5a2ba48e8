"""What Prometheus and Grafana need to watch a router; see docs/dashboards.md."""
