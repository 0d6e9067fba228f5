"""The report as one HTML file: read a registry into plain data (`collect`), put it into a page (`render`), or serve it.

    registry ── selection ── collect (one run: attempts, curves, clips, figures, data) ── render ── report.html
                                                                                       └─ serve ── 127.0.0.1

The page itself is `page.html`, `page.css` and `js/*.js`, without a framework, inlined when the file is written.
"""
