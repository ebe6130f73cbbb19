"""The live path: what runs beside a trained Verifier and needs Redis, Kafka or a web server.

Flow:    gg_ray (core) -> [serve]; nothing of the core and no actor imports it
"""
