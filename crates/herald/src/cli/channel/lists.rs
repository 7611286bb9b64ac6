//! `herald channel list` and `members`: what the projection of channels and members has.

use ::store::{Fault, Position, Timestamp};
use clap::Args;
use notification_subscribers::{ChannelLists, ChannelMember, ListedChannel};
use serde::Serialize;

use super::checked;
use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, list, moment, note};

pub(crate) const LIST_HELP: &str =
    "Examples:\n  herald channel list\n  herald channel list --limit 10000 -o jsonl";
pub(crate) const MEMBERS_HELP: &str = "Examples:\n  herald channel members channel1\n  \
    herald channel members channel1 --former";

/// A page of a list.
#[derive(Debug, Args)]
struct Page {
    /// Only what comes after this position
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    after: i64,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

impl Page {
    /// Where the next page begins, if this one is full.
    fn next(&self, count: usize, last: Option<Position>) -> Option<String> {
        last.filter(|_| count == usize::from(self.limit)).map(|last| last.to_string())
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    page: Page,
}

#[derive(Debug, Args)]
pub(crate) struct MembersArguments {
    /// Of which
    channel: String,
    /// Also those who have left
    #[arg(long)]
    former: bool,
    #[command(flatten)]
    page: Page,
}

#[derive(Serialize)]
struct Channel {
    channel: String,
    label: String,
    members: i64,
    added_at: Timestamp,
    archived_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct Member {
    user: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

pub(crate) async fn list_channels(
    config: &Config,
    global: &Global,
    arguments: &ListArguments,
) -> Result<(), Exit> {
    let app = App::open_to_look(config).await?;
    let (after, limit) = (Position(arguments.page.after), i64::from(arguments.page.limit));
    let found = ChannelLists::new(app.store.clone()).channels(after, limit).await.map_err(not_there)?;
    let next = arguments.page.next(found.len(), found.last().map(|last| last.position));
    let item = |channel: ListedChannel| Channel {
        channel: channel.channel_id,
        label: channel.label,
        members: channel.members,
        added_at: channel.added_at,
        archived_at: channel.archived_at,
    };
    let items: Vec<Channel> = found.into_iter().map(item).collect();
    let header = ["CHANNEL", "STATUS", "MEMBERS", "ADDED", "LABEL"];
    list(
        global.output,
        global.no_header,
        "herald.channel.list/1",
        &header,
        &items,
        next.as_deref(),
        |item| {
            vec![
                item.channel.clone(),
                if item.archived_at.is_some() { "archived" } else { "open" }.to_owned(),
                item.members.to_string(),
                shown(global, item.added_at),
                item.label.clone(),
            ]
        },
    )?;
    note_next(global, next);
    Ok(())
}

pub(crate) async fn list_members(
    config: &Config,
    global: &Global,
    arguments: &MembersArguments,
) -> Result<(), Exit> {
    let channel = checked(&arguments.channel)?;
    let app = App::open_to_look(config).await?;
    let (after, limit) = (Position(arguments.page.after), i64::from(arguments.page.limit));
    let lists = ChannelLists::new(app.store.clone());
    let found = lists.members(channel.as_str(), arguments.former, after, limit).await.map_err(not_there)?;
    let next = arguments.page.next(found.len(), found.last().map(|last| last.position));
    let item = |ChannelMember { user_id, since, until, .. }| Member { user: user_id, since, until };
    let items: Vec<Member> = found.into_iter().map(item).collect();
    let header = ["USER", "SINCE", "UNTIL"];
    list(
        global.output,
        global.no_header,
        "herald.channel.members/1",
        &header,
        &items,
        next.as_deref(),
        |item| {
            let until = item.until.map_or_else(|| "-".to_owned(), |until| shown(global, until));
            vec![item.user.clone(), shown(global, item.since), until]
        },
    )?;
    note_next(global, next);
    Ok(())
}

fn shown(global: &Global, at: Timestamp) -> String {
    if global.output == Format::Table { moment(at) } else { at.to_string() }
}

fn note_next(global: &Global, next: Option<String>) {
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There are more: add --after {next}."));
    }
}

fn not_there(error: sqlx::Error) -> Exit {
    if Fault::of(&error) == Fault::Other {
        let message = format!("the list is not there: {}", ::store::messages(&error).join(": "));
        return Exit::new(Code::Failed, message)
            .with_hint("run `herald store setup`, or `herald projection replay channel-members`");
    }
    error.into()
}
