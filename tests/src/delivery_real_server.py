# A real mail server for the tests: aiosmtpd, which wants STARTTLS and a login before anything else. It writes a line of
# JSON for its port and one for each mail, as Python's own parser reads it.
import asyncio, json, ssl, sys
from email import message_from_bytes, policy
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.original_content, policy=policy.default)
        said = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "headers": {name: str(value) for name, value in mail.items()},
            "count": len(mail.items()),
            "defects": [str(defect) for defect in mail.defects],
            "text": mail.get_content().replace("\r\n", "\n").rstrip("\n"),
        }
        print(json.dumps(said), flush=True)
        return "250 2.0.0 taken"


def authenticate(server, session, envelope, mechanism, data):
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"herald", b"the password")
    # The server says 535 by itself.
    return AuthResult(success=right, handled=False)


async def serve(certificate, key):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    loop = asyncio.get_running_loop()

    def conversation():
        return SMTP(
            Handler(), loop=loop, tls_context=context, require_starttls=True, authenticator=authenticate,
            auth_required=True,
        )

    server = await loop.create_server(conversation, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(serve(*sys.argv[1:]))
